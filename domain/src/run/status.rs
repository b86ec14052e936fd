//! Which status of a run may follow which.
//!
//! | from \ to | planning | running | awaiting_approval | paused | blocked | failed | completed | cancelled |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | queued | yes | yes | yes | yes | yes | yes | yes | yes |
//! | planning | = | yes | yes | yes | yes | yes | yes | yes |
//! | running | yes | = | yes | yes | yes | yes | yes | yes |
//! | awaiting_approval | yes | yes | = | yes | yes | yes | yes | yes |
//! | paused | yes | yes | yes | = | yes | yes | yes | yes |
//! | blocked | yes | yes | yes | yes | = | yes | yes | yes |
//! | failed, completed, cancelled | – | reopen | – | – | – | = | = | = |
//!
//! Nothing goes back to `queued`. A run that has ended stays so, whatever an event claims, until somebody says that it
//! is opened again. `=` stands for a status that stays what it is: only the ending itself does not change.

use super::{Run, RunStatus};
use crate::time::UnixMs;

impl RunStatus {
    /// Whether `next` may follow, but for opening it again.
    pub fn may_become(self, next: Self) -> bool {
        self == next || (!self.is_terminal() && next != Self::Queued)
    }
}

impl Run {
    /// Takes a status that may follow, and keeps the times that go with it.
    pub(super) fn enter(&mut self, status: RunStatus, now: UnixMs) {
        if self.status == status {
            return;
        }
        self.status = status;
        if matches!(status, RunStatus::Running | RunStatus::Planning) {
            self.started_at.get_or_insert(now);
        }
        self.ended_at = status.is_terminal().then_some(now);
    }

    /// Goes on with a run that has ended.
    pub(super) fn reopen(&mut self) {
        self.status = RunStatus::Running;
        (self.ended_at, self.last_error) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_run_stays_ended() {
        for ended in RunStatus::ALL.into_iter().filter(|status| status.is_terminal()) {
            for next in RunStatus::ALL {
                assert_eq!(ended.may_become(next), ended == next, "{ended:?} to {next:?}");
            }
        }
    }

    #[test]
    fn a_run_that_goes_on_may_become_anything_but_queued() {
        for from in RunStatus::ALL.into_iter().filter(|status| !status.is_terminal()) {
            for next in RunStatus::ALL {
                assert_eq!(from.may_become(next), next != RunStatus::Queued || from == next, "{from:?} to {next:?}");
            }
        }
    }
}
