//! A thread that is made of a log that is there already, as if it had been one step.

use super::{
    Step, ThreadState,
    apply::{Ended, Impossible},
    step::Rest,
};
use crate::{command::Reply, event::Record, pack::spread};

impl ThreadState {
    /// Folds a whole log, and says what a host has to save of it. Where deltas were joined, so many stand in their place
    /// as there were: the text is in the last of them.
    pub fn given(log: Vec<Record>) -> Result<(Self, Step), Impossible> {
        let mut log = spread(log).into_iter();
        let first = log.next().ok_or(Impossible { seq: 0, why: "a log has an event" })?;
        let mut state = Self::begin(&first)?;
        let mut rest = Rest { seq: state.seq(), snapshot: state.snapshot() };
        let (mut records, mut settled, mut reverted) = (vec![first], Vec::new(), Vec::new());
        for record in log {
            match state.fold(&record)? {
                Some(Ended::Settled(turn)) => settled.push(*turn),
                Some(Ended::Reverted(turn)) => reverted.push(turn),
                None => {}
            }
            if state.open.is_none() {
                rest = Rest { seq: state.seq(), snapshot: state.snapshot() };
            }
            records.push(record);
        }
        let reply = Reply::Thread(Box::new(state.view.clone()));
        Ok((state, Step { records, settled, reverted, rest: Some(rest), reply }))
    }
}
