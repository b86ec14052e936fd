//! What hosts hold: every verb of the runtime as an async function, callable from any tokio program.

use std::{sync::Arc, time::Duration};

use raddle_domain::{
    command::{NewThread, Refused, StartTurn, ThreadPatch},
    id::{ItemId, Seq, TenantId, ThreadKey, TurnId},
    ports::{Chunk, Models, Place, StoreError},
    record::{Admission, InterruptReceipt, Item, ItemKind, Thread, ThreadStatus, Turn},
};

use crate::batch::Batch;

/// The runtime: cheap to clone, `Send`, and gone when `shutdown` was awaited.
#[derive(Clone)]
pub struct Runtime {}

/// What every verb may carry beside its own fields.
#[derive(Debug, Clone, Default)]
pub struct Call {
    pub idempotency: Option<Idempotency>,
    /// Refuse unless the thread's log ends here.
    pub if_match: Option<Seq>,
}

/// The digests by which a repeated request is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotency {
    /// SHA-256 over method, route and the caller's key.
    pub key: [u8; 32],
    /// SHA-256 over the request's path and body.
    pub request: [u8; 32],
}

/// An accepted and durable command.
#[derive(Debug, Clone, PartialEq)]
pub struct Done<T> {
    pub value: T,
    /// Where the thread's log ended with this step.
    pub seq: Seq,
    /// Whether this is the stored reply of an earlier, equal request.
    pub replayed: bool,
}

/// What a start became.
#[derive(Debug, Clone, PartialEq)]
pub enum Started {
    Turn(Box<Turn>),
    Queued { admission: Box<Admission>, active_turn: TurnId },
}

/// Why a verb or a read did not succeed. The sentences are for callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("no such {0}")]
    NotFound(&'static str),
    #[error("the thread was deleted")]
    Deleted,
    #[error("a request with this idempotency key is still in flight")]
    InFlight,
    #[error("this idempotency key was used with another request")]
    IdempotencyMismatch,
    /// A bound of the server is reached; try again after the given time.
    #[error("the server is busy: {what} is full")]
    Busy { what: &'static str, retry_after: Duration },
    #[error("the server is shutting down")]
    Draining,
    /// One thread's records cannot be used; the sentence names the record.
    #[error("the thread is unavailable: {0}")]
    ThreadUnavailable(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A defect of ours.
    #[error("internal error")]
    Internal(String),
}

/// Which threads to list.
#[derive(Debug, Clone, Default)]
pub struct ThreadQuery {
    pub archived: Archived,
    pub status: Option<ThreadStatus>,
    /// Case-insensitive part of the title or of the id.
    pub q: Option<String>,
    pub after: Option<Place>,
    pub limit: usize,
}

/// Whether archived threads are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Archived {
    #[default]
    Without,
    With,
    Only,
}

/// A part of a list, and where the rest begins. A page may be shorter than asked for and still have a `next`.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T, C> {
    pub data: Vec<T>,
    pub next: Option<C>,
}

/// Which items to list; oldest first.
#[derive(Debug, Clone, Default)]
pub struct ItemQuery {
    pub turn: Option<TurnId>,
    pub kind: Option<ItemKind>,
    pub after: Option<ItemPlace>,
    pub limit: usize,
}

/// Where in a thread's items: the turn, by the seq of its start, and how many of its items are behind us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemPlace {
    pub turn_started: Seq,
    pub items: u32,
}

/// A thread, whole, as of `seq`.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub thread: Thread,
    pub turns: Vec<Turn>,
    pub items: Vec<Item>,
    pub inbox: Vec<Admission>,
    pub seq: Seq,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Events {
    pub chunks: Vec<Chunk>,
    /// Where the log ended when it was read.
    pub head: Seq,
}

/// A watcher of one thread: what is stored after its cursor, then what happens, each event once and in order.
pub struct Subscription {}

/// What a watcher gets next.
#[derive(Debug, Clone)]
pub enum Next {
    /// Events from the log, read for this watcher alone.
    Stored(Vec<Chunk>),
    /// Events as they were committed; the first `skip` of them were seen already.
    Live { batch: Arc<Batch>, skip: usize },
    /// The watcher was too slow and is cut off; it resumes after this seq. Nothing follows.
    Gap { after: Seq },
    /// The server is going down; the watcher resumes after this seq. Nothing follows.
    Shutdown { after: Seq },
    /// The thread is gone. Nothing follows.
    Deleted,
}

/// How the runtime is, for health checks and metrics.
#[derive(Debug, Clone, Default)]
pub struct Health {
    pub store_writable: bool,
    pub draining: bool,
    pub loaded_threads: u64,
    pub loaded_bytes: u64,
    pub running_turns: u64,
    pub subscribers: u64,
    pub commits: u64,
    pub steps: u64,
    pub events: u64,
    pub store_errors: u64,
    pub evictions: u64,
    pub subscribers_dropped: u64,
    pub commands_in_flight: u64,
    pub commands_refused_busy: u64,
}

impl Runtime {
    /// The models that are configured.
    pub fn models(&self) -> &Arc<dyn Models> {
        unimplemented!()
    }
    pub async fn create_thread(&self, tenant: TenantId, new: NewThread, call: Call) -> Result<Done<Thread>, Error> {
        unimplemented!()
    }
    pub async fn patch_thread(&self, key: ThreadKey, patch: ThreadPatch, call: Call) -> Result<Done<Thread>, Error> {
        unimplemented!()
    }
    pub async fn delete_thread(&self, key: ThreadKey, call: Call) -> Result<Done<()>, Error> {
        unimplemented!()
    }
    pub async fn start_turn(&self, key: ThreadKey, start: StartTurn, call: Call) -> Result<Done<Started>, Error> {
        unimplemented!()
    }
    pub async fn interrupt(&self, key: ThreadKey, turn: TurnId, call: Call) -> Result<Done<InterruptReceipt>, Error> {
        unimplemented!()
    }
    pub async fn thread(&self, key: ThreadKey) -> Result<Thread, Error> {
        unimplemented!()
    }
    pub async fn threads(&self, tenant: TenantId, query: ThreadQuery) -> Result<Page<Thread, Place>, Error> {
        unimplemented!()
    }
    pub async fn snapshot(&self, key: ThreadKey) -> Result<Snapshot, Error> {
        unimplemented!()
    }
    /// Turns in order; the cursor is the seq at which the last one of the page started.
    pub async fn turns(&self, key: ThreadKey, after: Option<Seq>, limit: usize) -> Result<Page<Turn, Seq>, Error> {
        unimplemented!()
    }
    pub async fn turn(&self, key: ThreadKey, turn: TurnId) -> Result<Turn, Error> {
        unimplemented!()
    }
    pub async fn items(&self, key: ThreadKey, query: ItemQuery) -> Result<Page<Item, ItemPlace>, Error> {
        unimplemented!()
    }
    /// Prompts that wait, in the order in which they will run.
    pub async fn inbox(&self, key: ThreadKey) -> Result<Vec<Admission>, Error> {
        unimplemented!()
    }
    /// Stored events after `after`, at most `limit`. An `after` beyond the head is refused as invalid.
    pub async fn events(&self, key: ThreadKey, after: Seq, limit: usize) -> Result<Events, Error> {
        unimplemented!()
    }
    /// An `after` beyond the head is refused as invalid.
    pub async fn subscribe(&self, key: ThreadKey, after: Seq) -> Result<Subscription, Error> {
        unimplemented!()
    }
    /// The turn, once it is terminal or `timeout` has passed.
    pub async fn wait_turn(&self, key: ThreadKey, turn: TurnId, timeout: Duration) -> Result<Turn, Error> {
        unimplemented!()
    }
    pub fn health(&self) -> Health {
        unimplemented!()
    }
    /// Refuses new commands, waits up to `deadline` for open turns to end, ends every subscription, makes the
    /// store rest, stops the actor threads. What is still open continues at the next start.
    pub async fn shutdown(&self, deadline: Duration) {
        unimplemented!()
    }
}

impl Subscription {
    /// The next piece; after `Gap`, `Shutdown`, `Deleted` or an error there is nothing more.
    /// Cancel-safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<Next, Error> {
        unimplemented!()
    }
}
