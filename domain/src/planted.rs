//! Faults that are put in on purpose, to see that they are found.
//!
//! Only with the feature `planted`, which no build for use has. A fault is chosen for a thread of the operating system,
//! so that tests that run side by side do not meet each other's; nothing is planted until somebody does.

use std::{cell::Cell, fmt, str::FromStr};

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A store takes an append whatever fence and seq it names.
    SkipFence,
    /// A command is answered before its step is stored.
    ReplyEarly,
    /// The bus does not hand on one of the commits that it is told of.
    DropMessage,
    /// What is due is not looked at again once it was.
    ForgetTimer,
    /// A tool that is due is started twice.
    DoubleEffect,
    /// An inbox gives out its newest prompt, not its oldest.
    NewestFirst,
    /// A model call takes what no budget has room for.
    Overspend,
    /// Somebody is heard on a task whose lease has run out, or is another one's.
    LateWord,
}

thread_local! {
    static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Plants a fault on this thread, in the place of the one before; `None` takes it out.
pub fn plant(fault: Option<Fault>) {
    PLANTED.set(fault);
}

/// Whether this fault is planted here.
pub fn is(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::SkipFence,
        Self::ReplyEarly,
        Self::DropMessage,
        Self::ForgetTimer,
        Self::DoubleEffect,
        Self::NewestFirst,
        Self::Overspend,
        Self::LateWord,
    ];

    /// What a command line calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SkipFence => "skip-fence",
            Self::ReplyEarly => "reply-early",
            Self::DropMessage => "drop-message",
            Self::ForgetTimer => "forget-timer",
            Self::DoubleEffect => "double-effect",
            Self::NewestFirst => "newest-first",
            Self::Overspend => "overspend",
            Self::LateWord => "late-word",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|fault| fault.name() == name)
            .ok_or_else(|| format!("no such fault; there are {}", names()))
    }
}
