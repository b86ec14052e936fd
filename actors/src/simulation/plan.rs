//! What happens to a runtime from outside: what clients ask of it and when, and what goes wrong. All of it is a value,
//! so that parts of it can be left out. How a seed makes one is in [`super::drawn`], how people read one in
//! [`super::told`].

use raddle_domain::{
    hook::EventFilter,
    record::{Decision, Delivery, Resolution},
    schedule::{CatchUp, Overlap},
    tenant::Quotas,
};

use super::scheduler::Manner;

/// What a seed stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub seed: u64,
    pub(crate) kept: Kept,
    pub(crate) manner: Manner,
    /// Threads that may be loaded at once.
    pub(crate) loaded: usize,
    pub(crate) tenants: usize,
    /// How long after its end a turn's log is packed.
    pub(crate) pack_ms: u64,
    pub(crate) listeners: Vec<Listener>,
    /// What a tenant may have of whom nobody says otherwise.
    pub(crate) quotas: Quotas,
    pub(crate) moves: Vec<Move>,
    pub(crate) faults: Vec<Fault>,
    /// What is wrong with the runtime itself.
    #[cfg(feature = "planted")]
    pub(crate) plant: Option<raddle_domain::planted::Fault>,
}

/// Where things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// In a store that is a value in memory.
    Memory,
    /// In the database, whose file is in memory.
    Database,
}

/// A hook, and what its sink says to what it is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    pub name: &'static str,
    pub events: EventFilter,
    /// Whose events; everybody's where nothing is said.
    pub tenant: Option<usize>,
    /// Whether it begins with the first event, or with what happens once it is there.
    pub from_start: bool,
    /// The first process that has it.
    pub since_process: u32,
    /// Whether it gives up what is refused again and again.
    pub skips: bool,
    /// Events that its sink takes at once.
    pub most: usize,
    /// Behind the last of them it takes what comes.
    pub answers: Vec<Answer>,
}

/// What a sink says to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It may come too late.
    Takes {
        after_ms: u64,
    },
    Refuses,
    Away {
        retry_ms: Option<u64>,
    },
    /// Nobody is there until everything else rests.
    Gone,
}

/// Something that a client does, at a time of the virtual clock.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Move {
    pub number: u32,
    pub at_ms: u64,
    pub verb: Verb,
    /// Whether it is asked again until somebody answers: with an idempotency key, where the verb knows one.
    pub insists: bool,
    /// How long somebody who insists waits before he asks for the second time; then twice as long, and so on.
    pub pause_ms: u64,
    /// Whether it is asked again although it was answered.
    pub again: bool,
}

impl Move {
    /// Whether it goes on for as long as there is anything.
    pub const fn watches(&self) -> bool {
        matches!(self.verb, Verb::Watch { .. } | Verb::WatchTenant { .. })
    }

    /// Whether it names an idempotency key. What can be repeated as it is takes none.
    pub const fn is_keyed(&self) -> bool {
        let repeats = matches!(
            self.verb,
            Verb::Patch { .. }
                | Verb::Delete { .. }
                | Verb::EditPrompt { .. }
                | Verb::Withdraw { .. }
                | Verb::DeleteCheckpoint { .. }
                | Verb::Allow { .. }
                | Verb::Grant { .. }
                | Verb::Erase { .. }
        );
        self.insists && !repeats
    }
}

/// What a client asks for. Threads are named by the place in which the client keeps their ids; what is of a thread, by
/// its place in a list that the client reads first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verb {
    Create {
        to: usize,
        auto_approve: bool,
        interrupts: bool,
        /// Tokens that it may spend.
        budget: Option<u64>,
    },
    Start {
        thread: usize,
        delivery: Delivery,
        script: String,
        requeue: bool,
    },
    Steer {
        thread: usize,
        script: String,
        requeue: bool,
    },
    EditLast {
        thread: usize,
        script: String,
    },
    EditPrompt {
        thread: usize,
        nth: usize,
        script: Option<String>,
        position: Option<u32>,
    },
    Withdraw {
        thread: usize,
        nth: usize,
    },
    Interrupt {
        thread: usize,
        pause: bool,
    },
    Compact {
        thread: usize,
        delivery: Delivery,
    },
    Decide {
        thread: usize,
        nth: usize,
        decision: Decision,
    },
    Answer {
        thread: usize,
        nth: usize,
    },
    Resolve {
        thread: usize,
        nth: usize,
        resolution: Resolution,
    },
    Patch {
        thread: usize,
        change: Change,
    },
    SaveCheckpoint {
        thread: usize,
    },
    DeleteCheckpoint {
        thread: usize,
    },
    Fork {
        thread: usize,
        to: usize,
        at: At,
    },
    Delete {
        thread: usize,
    },
    /// Reads a thread, and compares it with what is known of it.
    Read {
        thread: usize,
    },
    /// Watches a thread: from its beginning, or from now on; takes its time over each piece.
    Watch {
        thread: usize,
        from_start: bool,
        slow_ms: u64,
        for_ms: Option<u64>,
    },
    WatchTenant {
        tenant: usize,
        slow_ms: u64,
    },
    CreateRun {
        to: usize,
    },
    AddTasks {
        run: usize,
        count: u32,
        /// Failures after which one has failed for good.
        attempts: u32,
    },
    /// Works on a task of a run, from a claim to a last word.
    Work {
        run: usize,
        /// Where.
        path: usize,
        /// Whether the run is to be bound there, if it is bound elsewhere.
        rebinds: bool,
        lease_ms: u64,
        /// How often it is said that somebody is still there.
        beats: u32,
        /// Between two words.
        pause_ms: u64,
        parting: Parting,
    },
    /// Has something done later, by nobody who waits for it.
    Enqueue {
        to: usize,
        chore: Chore,
        /// Retries, and the pause before the first of them.
        attempts: u32,
        base_ms: u64,
    },
    /// Has it done every minute.
    Repeat {
        to: usize,
        chore: Chore,
        overlap: Overlap,
        catch_up: CatchUp,
    },
    /// Says something to a job.
    Tell {
        job: usize,
        word: Word,
    },
    /// Says how many tokens a tenant may spend.
    Allow {
        tenant: usize,
        tokens: u64,
    },
    /// Removes all that there is of a tenant. A store in memory cannot do that.
    Erase {
        tenant: usize,
    },
    /// Says how much it may have.
    Grant {
        tenant: usize,
        quotas: Quotas,
    },
}

impl Verb {
    /// What a model is to do.
    pub const fn script(&self) -> Option<&String> {
        match self {
            Self::Start { script, .. } | Self::Steer { script, .. } | Self::EditLast { script, .. } => Some(script),
            Self::EditPrompt { script, .. } => script.as_ref(),
            _ => None,
        }
    }

    pub const fn script_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Start { script, .. } | Self::Steer { script, .. } | Self::EditLast { script, .. } => Some(script),
            Self::EditPrompt { script, .. } => script.as_mut(),
            _ => None,
        }
    }
}

/// What a job is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chore {
    Turn { thread: usize, script: String },
    Command { thread: usize, words: String },
    Webhook { words: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Pause,
    Resume,
    Cancel,
    Retry,
}

/// How somebody leaves a task that he holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parting {
    Completes,
    Fails,
    Releases,
    /// Without a word: its lease runs out.
    Vanishes,
}

/// A change of a thread's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Title,
    AutoApprove(bool),
    Archived(bool),
    QueuePaused(bool),
}

/// Where a fork leaves its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Settled,
    Checkpoint,
    /// Before the last turn.
    LastTurn,
}

/// Something that goes wrong. Commits are counted from 1 over all processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A commit fails, and so do the next attempts to open the store again.
    Fails { commit: u32, leaves: Leaves, reopens: u32 },
    /// The disk is full for some time.
    Full { commit: u32, ms: u64 },
    /// The disk answers late what comes after a commit.
    Stalls { commit: u32, ms: u64 },
    /// Some reads fail.
    Reads { at_ms: u64, count: u32 },
    /// The process dies with a commit that it does not hear of, applied or not; or one that comes to the disk late, when
    /// the next process has written there.
    Dies { commit: u32, how: Death, down_ms: u64 },
    /// The process dies between two steps.
    Killed { at_ms: u64, down_ms: u64 },
    /// The server is told to go down, and is given so long for what is open.
    Stops { at_ms: u64, deadline_ms: u64, down_ms: u64 },
    /// Somebody sets the clock.
    Clock { at_ms: u64, by_ms: i64 },
}

/// What a commit leaves that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaves {
    Nothing,
    /// It is stored. Nothing can be read until the store was opened again.
    All,
    /// It is stored, and shows once the store was opened again; until then what was there before is read.
    Hidden,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    Before,
    After,
    Late,
}

impl Plan {
    /// The same with a fault in the runtime itself, or without one.
    #[cfg(feature = "planted")]
    #[must_use]
    pub fn planted(self, plant: Option<raddle_domain::planted::Fault>) -> Self {
        Self { plant, ..self }
    }

    /// How much there is of it: what is left out counts less.
    pub fn size(&self) -> usize {
        self.moves.len() + self.faults.len() + self.listeners.len()
    }
}
