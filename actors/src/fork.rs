//! A new thread that continues another one's log from a settled place.

use raddle_domain::{
    id::{ItemId, ThreadKey, TurnId},
    record::Thread,
};

use crate::handle::{Call, Done, Error, Runtime};

/// Where a fork leaves its parent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ForkAt {
    /// After everything that is settled.
    #[default]
    Settled,
    /// After this item; what its turn did later is not part of the fork.
    Item(ItemId),
    /// Before this turn began.
    BeforeTurn(TurnId),
    /// At a checkpoint; `latest` is the newest one.
    Checkpoint(String),
}

impl Runtime {
    /// Makes a thread that shares the parent's history up to `at`. Nothing open comes along: no turn, no queued
    /// prompt, no approval, no usage.
    pub async fn fork(
        &self,
        _parent: ThreadKey,
        _at: ForkAt,
        _title: Option<String>,
        _call: Call,
    ) -> Result<Done<Thread>, Error> {
        Err(raddle_domain::command::Refused::NotImplemented("fork").into())
    }
}
