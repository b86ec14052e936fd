//! What threads are told, for whoever writes it down.
//!
//! ```text
//!   Host ──a piece for each saved append──▶ Tape ──▶ Ear (bounded) ──▶ Recording: lines of a trace
//! ```
//! A piece is handed over when what came of it is durable, so a step that was not saved is on no tape. While nobody
//! listens, a step costs one look at a number.
//!
//! A recording may begin at any time. The first lines of a thread that was there before are its log so far, read when
//! its first piece is taken; the same holds of a fork. What a listener cannot hold ends its recording, never a thread.
//!
//! Absent on purpose: runs, jobs and schedules. Their logs are their own, and their machines have other inputs.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use raddle_domain::{
    command::{Command, NewThread, Refused},
    id::{Seq, TenantId, ThreadId, ThreadKey},
    ports::Ids,
    thread::Step,
    time::UnixMs,
    trace::{Came, Header, Line, Logged, Told},
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    handle::{Error, Runtime},
    host::Machine,
    places::Hold,
    system::Shared,
    thread::ThreadMachine,
};

/// About the bytes of pieces that wait for one listener.
const ROOM: usize = 16 << 20;
/// The same for all listeners together.
const ROOM_OF_ALL: usize = 4 * ROOM;
/// What a line takes beside its texts, about.
const LINE: usize = 512;

/// Whose threads are listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Whose {
    /// All tenants', without it.
    pub tenant: Option<TenantId>,
    /// All threads, without it.
    pub thread: Option<ThreadId>,
}

impl Whose {
    fn covers(&self, key: ThreadKey) -> bool {
        self.tenant.is_none_or(|tenant| tenant == key.tenant) && self.thread.is_none_or(|thread| thread == key.thread)
    }
}

/// Hears everything that threads are told, and passes it on to whoever listens.
#[derive(Default)]
pub struct Tape {
    listening: AtomicUsize,
    /// Bytes that wait for listeners.
    bytes: Arc<AtomicUsize>,
    ears: Mutex<Vec<Arc<Held>>>,
}

/// What one append brought of a thread.
#[derive(Debug)]
pub(crate) struct Piece {
    key: ThreadKey,
    /// Where the log ended before.
    after: Seq,
    lines: Vec<Line>,
    bytes: usize,
}

/// A listener, from when it began to listen; see [`Runtime::record_from`]. Dropped, it hears nothing more.
pub struct Ear {
    tape: Arc<Tape>,
    held: Arc<Held>,
}

/// Pieces on their way to one listener.
struct Held {
    whose: Whose,
    room: usize,
    pieces: Mutex<VecDeque<Arc<Piece>>>,
    bytes: AtomicUsize,
    bytes_of_all: Arc<AtomicUsize>,
    news: Notify,
    /// There was no room for one.
    overrun: AtomicBool,
}

impl Tape {
    /// Begins to listen. What was begun before the call and is saved after it may be heard in part; then what came
    /// before stands in the log that the first lines are made of.
    pub fn listen(self: &Arc<Self>, whose: Whose) -> Ear {
        self.listen_within(whose, ROOM)
    }

    /// The same, with room for about so many bytes of what was not taken yet.
    pub fn listen_within(self: &Arc<Self>, whose: Whose, room: usize) -> Ear {
        let held = Arc::new(Held {
            whose,
            room,
            pieces: Mutex::default(),
            bytes: AtomicUsize::new(0),
            bytes_of_all: self.bytes.clone(),
            news: Notify::new(),
            overrun: AtomicBool::new(false),
        });
        self.ears().push(held.clone());
        self.listening.fetch_add(1, SeqCst);
        Ear { tape: self.clone(), held }
    }

    fn ears(&self) -> MutexGuard<'_, Vec<Arc<Held>>> {
        // Nothing below can leave it half changed.
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody wants to hear of the thread.
    pub(crate) fn wants(&self, key: ThreadKey) -> bool {
        self.listening.load(Relaxed) > 0 && self.ears().iter().any(|ear| ear.whose.covers(key))
    }

    fn hand_over(&self, piece: Piece) {
        let piece = Arc::new(piece);
        for ear in self.ears().iter().filter(|ear| ear.whose.covers(piece.key)) {
            ear.take(&piece);
        }
    }
}

impl Held {
    fn pieces(&self) -> MutexGuard<'_, VecDeque<Arc<Piece>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, piece: &Arc<Piece>) {
        let mut pieces = self.pieces();
        if self.overrun.load(SeqCst) {
            return;
        }
        // A single piece is taken whatever its size: one commit holds it, so it is bounded.
        let beyond = |bytes: &AtomicUsize, room| bytes.load(SeqCst) + piece.bytes > room;
        if !pieces.is_empty() && (beyond(&self.bytes, self.room) || beyond(&self.bytes_of_all, ROOM_OF_ALL)) {
            self.overrun.store(true, SeqCst);
        } else {
            self.bytes.fetch_add(piece.bytes, SeqCst);
            self.bytes_of_all.fetch_add(piece.bytes, SeqCst);
            pieces.push_back(piece.clone());
        }
        drop(pieces);
        self.news.notify_one();
    }

    /// The next piece; `None` behind the last that there was room for.
    async fn next(&self) -> Option<Arc<Piece>> {
        loop {
            let news = self.news.notified();
            if let Some(piece) = self.ready() {
                return Some(piece);
            }
            if self.overrun.load(SeqCst) {
                return None;
            }
            news.await;
        }
    }

    fn ready(&self) -> Option<Arc<Piece>> {
        let piece = self.pieces().pop_front()?;
        self.bytes.fetch_sub(piece.bytes, SeqCst);
        self.bytes_of_all.fetch_sub(piece.bytes, SeqCst);
        Some(piece)
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.tape.ears().retain(|ear| !Arc::ptr_eq(ear, &self.held));
        self.tape.listening.fetch_sub(1, SeqCst);
        while self.held.ready().is_some() {}
    }
}

// ---- what a thread was told -----------------------------------------------------------------------

/// Ids that are handed out, and remembered for the tape.
pub(crate) struct Noted {
    ids: Arc<dyn Ids>,
    minted: Mutex<Vec<Uuid>>,
}

impl Noted {
    pub fn of(ids: Arc<dyn Ids>) -> Self {
        Self { ids, minted: Mutex::default() }
    }

    pub fn minted(self) -> Vec<Uuid> {
        self.minted.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ids for Noted {
    fn mint(&self) -> Uuid {
        let id = self.ids.mint();
        self.minted.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        id
    }
}

/// What a thread was told since its last append, until what came of it is saved.
#[derive(Default)]
pub(crate) struct Unsaved(Option<Piece>);

/// One thing that a thread is about to be told.
pub(crate) struct Telling {
    told: Told,
    after: Seq,
}

impl Telling {
    pub fn to_be(new: &NewThread) -> Self {
        Self { told: Told::Created(Box::new(new.clone())), after: 0 }
    }

    pub fn command(command: &Command, if_match: Option<Seq>, after: Seq) -> Self {
        Self { told: Told::Command { command: Box::new(command.clone()), if_match }, after }
    }
}

impl Unsaved {
    /// What came of it.
    pub fn note(
        &mut self,
        key: ThreadKey,
        Telling { told, after }: Telling,
        (at, draining): (UnixMs, bool),
        minted: Vec<Uuid>,
        step: Result<&Step, &Refused>,
    ) {
        let came = match step {
            Ok(step) => Came::Events(step.records.iter().cloned().map(Logged).collect()),
            Err(refused) => Came::Refused { why: refused.to_string(), quota: matches!(refused, Refused::Quota { .. }) },
        };
        let bytes = LINE
            + match &told {
                Told::Command { command, .. } => ThreadMachine::bytes(command),
                Told::Created(_) | Told::Given => 0,
            };
        let line = Line { tenant: key.tenant, thread: key.thread, at, draining, minted, told, came };
        let piece = self.0.get_or_insert_with(|| Piece { key, after, lines: Vec::new(), bytes: 0 });
        // Events repeat the text that a line was told, and bring records of about the size of a line each.
        let events = step.map_or(0, |step| step.records.len());
        piece.bytes += 2 * bytes + events * LINE;
        piece.lines.push(line);
    }

    /// A thread whose past is another's begins with its log, up to `seq`.
    pub fn begins_at(&mut self, key: ThreadKey, seq: Seq) {
        self.0 = Some(Piece { key, after: seq, lines: Vec::new(), bytes: LINE });
    }

    /// It is saved.
    pub fn saved(&mut self, tape: &Tape) {
        if let Some(piece) = self.0.take() {
            tape.hand_over(piece);
        }
    }
}

// ---- recording ------------------------------------------------------------------------------------

/// Why a recording ended before anybody ended it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordError {
    /// What was recorded until then is whole.
    #[error("the recording was dropped: more happened than could be written down")]
    Overrun,
    #[error(transparent)]
    Runtime(#[from] Error),
}

/// What threads are told from now on, as lines of a trace. Dropped, it ends.
pub struct Recording {
    runtime: Runtime,
    ear: Ear,
    /// Where the log of each thread ends that was heard of; `None` once some of it was missed.
    known: HashMap<ThreadKey, Option<Seq>>,
    /// A piece that is being looked at: a dropped call has not lost it.
    taken: Option<Arc<Piece>>,
    left_out: u64,
    _place: Option<Hold>,
}

impl Runtime {
    /// The first line of a trace of this runtime.
    pub fn trace_header(&self) -> Header {
        let Shared { config, prices, clock, .. } = &**self.shared();
        Header::new(clock.now(), config.limits, (**prices).clone())
    }

    /// Records what threads are told from now on. It takes a place among those who watch.
    pub fn record(&self, whose: Whose) -> Result<Recording, Error> {
        let place = self.place_to_watch(whose.tenant)?;
        let recording = self.record_from(self.shared().tape.listen(whose));
        Ok(Recording { _place: Some(place), ..recording })
    }

    /// Records what was heard since `ear` began to listen, which may have been before the runtime was started.
    pub fn record_from(&self, ear: Ear) -> Recording {
        Recording { runtime: self.clone(), ear, known: HashMap::new(), taken: None, left_out: 0, _place: None }
    }
}

impl Recording {
    /// The next lines, all of one thread; `None` when the runtime goes down. Cancel-safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<Option<Vec<Line>>, RecordError> {
        let stopping = self.runtime.stopping();
        loop {
            let piece = match &self.taken {
                Some(piece) => piece.clone(),
                None => tokio::select! {
                    biased;
                    piece = self.ear.held.next() => piece.ok_or(RecordError::Overrun)?,
                    () = stopping.cancelled() => match self.ear.held.ready() {
                        Some(piece) => piece,
                        None => return Ok(None),
                    },
                },
            };
            self.taken = Some(piece.clone());
            let lines = self.lines(&piece).await?;
            self.taken = None;
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }

    /// Threads of which something was missed: an append whose outcome nobody knew, or a log that went before it was
    /// read. Their lines end there.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }

    async fn lines(&mut self, piece: &Piece) -> Result<Vec<Line>, Error> {
        let mut lines = Vec::new();
        match self.known.get(&piece.key) {
            Some(None) => return Ok(lines),
            Some(Some(known)) if *known == piece.after => {}
            // What made the thread may be heard of after what came next.
            Some(Some(known)) if *known > piece.after => return Ok(lines),
            Some(Some(_)) => {
                tracing::error!(thread = %piece.key, "something that a thread was told was missed: its recording ends");
                self.leave_out(piece.key);
                return Ok(lines);
            }
            None if piece.after == 0 => {}
            None => match self.runtime.given(piece.key, piece.after).await {
                Ok(given) => lines.push(given),
                // It is gone, or the store is, before it could be read: nothing of it can be replayed.
                Err(Error::NotFound(_) | Error::Deleted | Error::Draining) => {
                    self.leave_out(piece.key);
                    return Ok(lines);
                }
                Err(error) => return Err(error),
            },
        }
        lines.extend(piece.lines.iter().cloned());
        let ends = piece.lines.iter().rev().find_map(|line| match &line.came {
            Came::Events(events) => events.last().map(|Logged(last)| last.seq),
            Came::Refused { .. } => None,
        });
        self.known.insert(piece.key, Some(ends.unwrap_or(piece.after)));
        Ok(lines)
    }

    fn leave_out(&mut self, key: ThreadKey) {
        self.left_out += 1;
        self.known.insert(key, None);
    }
}
