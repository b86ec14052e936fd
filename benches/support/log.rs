//! Threads with a past, made by the machine itself and put into the store directly: the log is what a runtime
//! would have written, without the wait.

use std::sync::Arc;

use raddle_actors::{SystemClock, UuidIds};
use raddle_domain::{
    command::{Command, Limits, NewThread, Reply, Report, StartTurn, TextKind},
    id::{Seq, TenantId, ThreadId, ThreadKey},
    ports::{
        Answered, Append, Chunk, Clock, FinishReason, Ids, LogKind, LogStore, RowHead, SettledTurn, StoredEvent,
        ThreadRow, Write,
    },
    price::Prices,
    thread::{Cx, Step, ThreadState},
};

use super::choice;

/// Deltas of one turn: an answer of two seconds, saved every 30 ms.
const DELTAS: usize = 66;
/// About ten tokens.
const DELTA: &str = "some ten tokens of an answer that goes on and on ";

/// A thread that is being written.
pub struct Author {
    key: ThreadKey,
    state: ThreadState,
    snapshot: Arc<[u8]>,
    snapshot_seq: Seq,
    fence: u64,
    limits: Limits,
    writes: Vec<Write>,
}

impl Author {
    pub fn new(fence: u64) -> Self {
        let limits = Limits::default();
        let key = ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::new(UuidIds.mint()) };
        let cx = Cx {
            now: SystemClock.now(),
            ids: &UuidIds,
            limits: &limits,
            prices: &Prices::default(),
            draining: false,
            room: &raddle_domain::ports::Boundless,
        };
        let (state, step) = ThreadState::create(key.thread, NewThread::with(choice()), cx).expect("it is allowed");
        let mut author =
            Self { key, state, snapshot: Arc::default(), snapshot_seq: 0, fence, limits, writes: Vec::new() };
        author.keep(step);
        author
    }

    /// Whole turns, until the log has `events` or a few more.
    pub fn turns(mut self, events: Seq) -> (ThreadKey, Vec<Write>) {
        while self.state.seq() < events {
            self.talk("tell me everything", &[DELTA; DELTAS]);
        }
        (self.key, self.writes)
    }

    /// One turn: its prompt, and its answer in the pieces that are saved one by one.
    pub fn talk(&mut self, prompt: &str, pieces: &[&str]) {
        let start = StartTurn { prompt: prompt.to_owned(), ..StartTurn::default() };
        let Reply::Started(turn) = self.step(Command::Start(start)) else { unreachable!("the thread is idle") };
        let report =
            |text, end| Command::Report(Report { turn: turn.id, call: 1, text, acts: Vec::new(), metered: None, end });
        for piece in pieces {
            self.step(report(vec![(TextKind::Answer, (*piece).to_owned())], None));
        }
        let answered = Answered { reason: FinishReason::Stop, usage: None, tool_calls: Vec::new() };
        self.step(report(Vec::new(), Some(Ok(answered))));
    }

    /// What was written since this was last asked.
    pub fn written(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes)
    }

    fn step(&mut self, command: Command) -> Reply {
        let cx = Cx {
            now: SystemClock.now(),
            ids: &UuidIds,
            limits: &self.limits,
            prices: &Prices::default(),
            draining: false,
            room: &raddle_domain::ports::Boundless,
        };
        let step = self.state.step(command.into(), cx).expect("it is allowed");
        self.keep(step)
    }

    fn keep(&mut self, step: Step) -> Reply {
        let Step { records, settled, rest, reply, .. } = step;
        let expected = self.state.seq() - records.len() as Seq;
        let stored =
            records.iter().map(|record| StoredEvent { name: record.event.name().into(), json: json(record).into() });
        let chunk = Chunk { first: expected + 1, events: stored.collect() };
        let settled = settled.into_iter().map(|settled| SettledTurn {
            id: settled.turn.id,
            started_seq: settled.started_seq,
            turn: json(&settled.turn),
            items: settled.items,
            context_seq: 0,
            reverted: None,
        });
        if let Some(rest) = rest {
            self.snapshot = json(&rest.snapshot).into();
            self.snapshot_seq = rest.seq;
        }
        let head = RowHead {
            last_seq: self.state.seq(),
            snapshot_seq: self.snapshot_seq,
            fence: self.fence,
            listed_at: self.state.view().updated_at,
            owes_since: self.state.owes_since(),
            wake_at: None,
            archived: false,
            queued: self.state.view().queued,
            kind: LogKind::Thread,
        };
        let row = ThreadRow { head, view: json(self.state.view()).into(), snapshot: self.snapshot.clone() };
        let append = Append::new(self.key, expected, SystemClock.now(), chunk, row);
        self.writes.push(Write::Append(Append { settled: settled.collect(), ..append }));
        reply
    }
}

/// Puts threads of about so many events each into the store.
pub fn fill(store: &dyn LogStore, threads: usize, events: Seq) -> Vec<ThreadKey> {
    let (mut keys, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..threads {
        let (key, more) = Author::new(store.epoch()).turns(events);
        keys.push(key);
        writes.extend(more);
        if writes.len() >= 1000 || keys.len() == threads {
            let all = std::mem::take(&mut writes);
            for batch in all.chunks(1000) {
                assert!(store.commit(batch).expect("it is stored").iter().all(Result::is_ok));
            }
        }
    }
    keys
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are JSON")
}
