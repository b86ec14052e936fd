//! A small life of a store, and what can be seen of it.

use std::fmt::Write as _;

use raddle_actors::store::memory::MemoryStore;
use raddle_domain::{
    id::{Seq, ThreadKey},
    ports::{
        Append, DocumentKind, Fork, LogKind, LogStore, Part, PartKind, PartName, RecordKind, Reverted, StoreError,
        View, Write,
    },
    time::UnixMs,
};
use uuid::Uuid;

use super::{append, document, indexed, no_part, part, receipt, settled, spent, talk, tenant, thread, turn_id};

/// The last four are a job, a schedule and two runs.
pub const THREADS: [(u8, u8); 12] =
    [(1, 1), (1, 2), (1, 3), (2, 1), (2, 9), (1, 4), (1, 5), (1, 6), (1, 7), (2, 8), (1, 0xa1), (2, 0xa2)];

pub fn keys() -> [ThreadKey; 12] {
    THREADS.map(|(tenant_no, n)| thread(tenant_no, n))
}

fn step(which: usize, expected: Seq, count: u64, change: impl FnOnce(&mut Append)) -> Write {
    let mut step = append(keys()[which], expected, count);
    change(&mut step);
    Write::Append(step)
}

/// One thing that is asked of a store.
pub enum Act {
    Commit(Vec<Write>),
    /// Packs all there is.
    Pack,
}

impl Act {
    /// Every write is one that is taken.
    pub fn on(&self, store: &dyn LogStore) -> Result<(), StoreError> {
        match self {
            Self::Commit(writes) => {
                let results = store.commit(writes)?;
                assert!(results.iter().all(Result::is_ok), "{results:?}");
            }
            Self::Pack => drop(store.pack(UnixMs(u64::MAX), usize::MAX)?),
        }
        Ok(())
    }
}

/// A turn of six deltas, saved in three pieces, as one commit. It may be the first of a fork.
fn talks(which: usize, expected: Seq, number: u128, fork: Option<usize>) -> Vec<Write> {
    let deltas = ["some ", "of ", "it ", "☃", "", " and the rest"];
    let mut turn = talk::turn(keys()[which], expected, number, &deltas, 4, UnixMs(7));
    turn[0].fork = fork.map(|parent| Fork { parent: keys()[parent].thread, at: expected });
    turn.into_iter().map(Write::Append).collect()
}

/// Commits that touch every table, grow the file, fork, pack and erase.
pub fn script() -> Vec<Act> {
    use PartKind::{Entry, Task};
    use RecordKind::{Approval, Effect, Job, Question, Run, Schedule};
    let works = |kind, record, since: Option<u64>, due: Option<u64>| {
        move |step: &mut Append| {
            let head = &mut step.row.head;
            (head.kind, head.owes_since, head.wake_at) = (kind, since.map(UnixMs), due.map(UnixMs));
            let seq = head.last_seq;
            step.indexed = vec![indexed(record, 77, seq, since.is_some())];
        }
    };
    let job = |since, due| works(LogKind::Job, Job, since, due);
    let schedule = |since, due| works(LogKind::Schedule, Schedule, since, due);
    let run = |since, due, parts: Vec<Part>| {
        move |step: &mut Append| {
            works(LogKind::Run, Run, since, due)(step);
            step.parts = parts;
        }
    };
    let open = |n| part(Task, n, "open");
    let fact = |n| part(Entry, n, "a fact");
    let owes = |at| move |step: &mut Append| step.row.head.owes_since = Some(UnixMs(at));
    let settles = |started, n| {
        move |step: &mut Append| {
            step.settled = vec![settled(started)];
            step.receipts = vec![receipt(n, 100 + u64::from(n))];
        }
    };
    let large = |step: &mut Append| {
        for event in &mut step.chunk.events {
            event.json = vec![b'7'; 90_000].into();
        }
    };
    let brings = |records: &'static [(RecordKind, u128, bool)], tokens: u64| {
        move |step: &mut Append| {
            let seq = step.row.head.last_seq;
            step.indexed = records.iter().map(|(kind, n, open)| indexed(*kind, *n, seq, *open)).collect();
            step.spent = vec![spent(20_000, "a", tokens), spent(20_000 + seq as u32 / 4, "b", 1)];
            step.documents = vec![document(DocumentKind::PolicyRule, tokens as u8, "allowed for ever")];
        }
    };
    let rules = |numbers: &[u8]| Write::Documents {
        tenant: tenant(1),
        kind: DocumentKind::RoutingRule,
        documents: numbers.iter().map(|n| document(DocumentKind::RoutingRule, *n, "routes")).collect(),
    };
    let reverts = |started_seq, seq| {
        move |step: &mut Append| {
            step.reverted = vec![Reverted { started_seq, seq }];
        }
    };
    let commits = vec![
        vec![step(0, 0, 1, |_| {})],
        vec![step(0, 1, 3, owes(7)), step(1, 0, 1, |_| {}), step(3, 0, 2, owes(9))],
        vec![step(0, 4, 2, |step| step.row.head.wake_at = Some(UnixMs(77)))],
        vec![step(0, 6, 4, settles(3, 1)), step(1, 1, 1, owes(11))],
        vec![step(2, 0, 3, large)],
        vec![step(3, 2, 5, settles(1, 2)), step(4, 0, 1, |step| step.row.head.wake_at = Some(UnixMs(5)))],
        vec![Write::Erase { key: keys()[2], fence: 1, expected: 3 }],
        vec![step(1, 2, 8, settles(2, 3)), step(0, 10, 1, |_| {})],
        (0..70).map(|n| step(4, 1 + n, 1, |_| {})).collect(),
        vec![step(2, 0, 2, |_| {}), step(3, 7, 1, settles(4, 2))],
        vec![step(0, 11, 6, settles(12, 4))],
        vec![step(0, 17, 1, brings(&[(Approval, 1, true), (Question, 2, true)], 5)), rules(&[1, 2, 3])],
        vec![step(1, 10, 2, brings(&[(Approval, 3, true), (Effect, 4, true)], 6)), rules(&[2, 4])],
        vec![step(3, 8, 1, brings(&[(Approval, 1, true), (Question, 2, true)], 7)), step(0, 18, 1, |_| {})],
        vec![step(0, 19, 1, brings(&[(Approval, 1, false), (Approval, 9, true)], 5)), step(2, 2, 1, |_| {})],
        vec![Write::Erase { key: keys()[1], fence: 1, expected: 12 }, step(4, 71, 1, brings(&[(Effect, 5, false)], 8))],
        vec![rules(&[]), step(8, 0, 1, job(None, Some(50))), step(9, 0, 1, schedule(None, Some(40)))],
        vec![
            step(8, 1, 1, job(Some(51), Some(90))),
            step(9, 1, 0, schedule(Some(41), Some(60))),
            step(10, 0, 1, run(Some(53), Some(54), (0..70).map(open).collect())),
        ],
        vec![step(0, 20, 2, brings(&[(Approval, 9, false), (Question, 2, false)], 9)), rules(&[7])],
        [
            talks(5, 0, 1, None),
            talks(5, 10, 2, None),
            talks(6, 20, 3, Some(5)),
            talks(7, 10, 4, Some(6)),
            vec![step(6, 30, 1, reverts(11, 31))],
        ]
        .concat(),
        // Packs.
        Vec::new(),
        [talks(6, 31, 5, None), vec![Write::Erase { key: keys()[5], fence: 1, expected: 20 }]].concat(),
        Vec::new(),
        vec![
            step(8, 2, 2, job(None, Some(99))),
            step(9, 1, 1, schedule(None, None)),
            step(10, 1, 2, run(Some(53), None, vec![part(Task, 4, "done"), fact(2)])),
            step(11, 0, 1, run(None, None, vec![open(4), fact(1)])),
        ],
        vec![Write::Erase { key: keys()[8], fence: 1, expected: 4 }, step(9, 2, 0, schedule(Some(42), Some(70)))],
        vec![
            step(8, 0, 1, job(Some(52), None)),
            step(10, 3, 0, run(None, Some(55), (9..60).map(|n| no_part(Task, n)).collect())),
            Write::Erase { key: keys()[11], fence: 1, expected: 1 },
        ],
        vec![step(6, 41, 1, reverts(1, 42)), Write::Erase { key: keys()[7], fence: 1, expected: 20 }],
        vec![
            step(10, 3, 1, run(None, None, vec![open(20), no_part(Entry, 2)])),
            step(11, 0, 1, run(Some(56), None, vec![open(9)])),
        ],
    ];
    commits.into_iter().map(|writes| if writes.is_empty() { Act::Pack } else { Act::Commit(writes) }).collect()
}

/// A store in memory that lived through `acts`.
pub fn after(acts: &[Act]) -> MemoryStore {
    let store = MemoryStore::default();
    for act in acts {
        act.on(&store).unwrap();
    }
    store
}

/// All that the script's store shows; equal texts mean equal stores.
pub fn shown(store: &dyn LogStore) -> String {
    let figures = [1, 2].map(|n| store.figures(tenant(n)).unwrap());
    let view = store.view().unwrap();
    reads().iter().fold(format!("{figures:?}\n"), |mut text, read| {
        writeln!(text, "{}", read(&*view).expect("a readable store")).unwrap();
        text
    })
}

/// One thing to ask; the answer, or the error, as text.
pub type Read = Box<dyn Fn(&dyn View) -> Result<String, String>>;

fn text<T: std::fmt::Debug, E: std::fmt::Display>(answer: Result<T, E>) -> Result<String, String> {
    answer.map(|answer| format!("{answer:?}")).map_err(|error| error.to_string())
}

/// Reads whose every answer must be right or an error.
pub fn reads() -> Vec<Read> {
    let mut reads = exact_reads();
    reads.extend(lookups());
    reads.extend([1, 2].map(|n| -> Read { Box::new(move |view| text(view.list(tenant(n), None, 99))) }));
    reads
}

/// Reads of what the row vouches for.
pub fn exact_reads() -> Vec<Read> {
    let mut reads: Vec<Read> = Vec::new();
    for key in keys() {
        reads.push(Box::new(move |view| text(view.row(key))));
        reads.push(Box::new(move |view| text(view.turns(key, 0, 99))));
        for after in [0, 1, 5] {
            // Which of them stand in one chunk is the store's own affair.
            reads.push(Box::new(move |view| {
                let chunks = view.events(key, after, 999, usize::MAX).map_err(|error| error.to_string())?;
                let events = chunks.iter().flat_map(|chunk| (chunk.first..).zip(&chunk.events));
                Ok(format!("{:?}", events.collect::<Vec<_>>()))
            }));
        }
        for seq in [1, 2, 9, 15] {
            reads.push(Box::new(move |view| text(view.event(key, seq))));
            reads.push(Box::new(move |view| text(view.turn_before(key, seq))));
        }
    }
    reads
}

/// Reads by a name that nothing else vouches for.
pub fn lookups() -> Vec<Read> {
    let mut reads: Vec<Read> = Vec::new();
    for key in keys() {
        for started in [1, 2, 3, 4, 12] {
            reads.push(Box::new(move |view| text(view.turn(key, turn_id(started)))));
        }
        for number in 1..=5 {
            reads.push(Box::new(move |view| text(view.turn(key, talk::id(number)))));
        }
    }
    for n in 0..5 {
        reads.push(Box::new(move |view| text(view.receipt(tenant(1), &[n; 32], UnixMs(0)))));
        reads.push(Box::new(move |view| text(view.receipt(tenant(2), &[n; 32], UnixMs(0)))));
    }
    // Of the runs.
    for key in keys().into_iter().skip(10) {
        for kind in [PartKind::Task, PartKind::Entry] {
            reads.push(Box::new(move |view| text(view.parts(key, kind, None, 99))));
            for number in [2, 4, 9, 20, 69] {
                reads.push(Box::new(move |view| text(view.part(key, kind, PartName::number(number)))));
            }
        }
    }
    reads.push(Box::new(|view| text(view.owing(None, 99))));
    reads.push(Box::new(|view| text(view.due(UnixMs(u64::MAX), 99))));
    reads.push(Box::new(|view| text(view.owing_jobs(None, 99))));
    reads.push(Box::new(|view| text(view.due_jobs(UnixMs(u64::MAX), 99))));
    reads.extend(of_tenants());
    reads
}

/// Reads of what is a tenant's.
fn of_tenants() -> Vec<Read> {
    use RecordKind::{Approval, Effect, Job, Question, Run, Schedule};
    let mut reads: Vec<Read> = Vec::new();
    for of in [1, 2].map(tenant) {
        reads.push(Box::new(move |view| text(view.feed(of, 0, 999))));
        reads.push(Box::new(move |view| text(view.feed(of, 3, 5))));
        // As a list: of a feed whose end was lost less is shown, and nothing else.
        reads.push(Box::new(move |view| text(view.feed_head(of).map(|head| (1..=head).collect::<Vec<_>>()))));
        for kind in [Approval, Question, Effect, Job, Schedule, Run] {
            for open in [true, false] {
                reads.push(Box::new(move |view| text(view.records(of, kind, None, open, None, 99))));
            }
            for n in [1, 2, 3, 4, 5, 9, 77] {
                reads.push(Box::new(move |view| text(view.record(of, kind, Uuid::from_u128(n)))));
            }
        }
        reads.push(Box::new(move |view| text(view.spent(of, 0, u32::MAX, None, 99))));
        for kind in [DocumentKind::RoutingRule, DocumentKind::PolicyRule] {
            reads.push(Box::new(move |view| text(view.documents(of, kind))));
        }
    }
    for key in keys() {
        reads.push(Box::new(move |view| text(view.records(key.tenant, Approval, Some(key.thread), false, None, 99))));
    }
    reads
}

/// Small and repeatable randomness.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}
