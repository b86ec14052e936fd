//! The door of the runtime: the one place where commands are counted in and out, with the rule of
//! [`raddle_domain::admission`] behind it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use raddle_domain::admission::Admission;
use tokio::time::Instant;

/// Commands that may always be under way, however long they take: fewer would leave the disk idle, which takes what is
/// there in one commit, and a few dozen clients are no flood on the slowest of machines.
const FLOOR: u32 = 64;

/// Counts commands in and out.
#[derive(Debug)]
pub(crate) struct AdmissionControl {
    origin: Instant,
    rule: Mutex<Admission>,
}

/// A place among the commands that are under way, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    control: Arc<AdmissionControl>,
    entered: Instant,
    durable: bool,
}

/// There is no place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Busy;

/// What there is to see from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub under_way: u64,
    pub limit: u64,
}

impl AdmissionControl {
    pub fn new(ceiling: usize, bearable: Duration) -> Arc<Self> {
        let ceiling = u32::try_from(ceiling).unwrap_or(u32::MAX);
        Arc::new(Self { origin: Instant::now(), rule: Mutex::new(Admission::new(FLOOR, ceiling, bearable)) })
    }

    fn rule(&self) -> MutexGuard<'_, Admission> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a command that makes work.
    pub fn enter(self: &Arc<Self>) -> Result<Place, Busy> {
        self.place(Admission::enter)
    }

    /// A place for one that ends it.
    pub fn enter_to_end_work(self: &Arc<Self>) -> Result<Place, Busy> {
        self.place(Admission::enter_to_end_work)
    }

    fn place(self: &Arc<Self>, enter: impl Fn(&mut Admission, Duration) -> bool) -> Result<Place, Busy> {
        let entered = Instant::now();
        match enter(&mut self.rule(), entered - self.origin) {
            true => Ok(Place { control: self.clone(), entered, durable: false }),
            false => Err(Busy),
        }
    }

    /// Whether there is a place, for those who would rather not begin otherwise.
    pub fn look(&self) -> Result<(), Busy> {
        let mut rule = self.rule();
        if rule.has_room() {
            return Ok(());
        }
        rule.turned_away(self.origin.elapsed());
        Err(Busy)
    }

    pub fn figures(&self) -> Figures {
        let rule = self.rule();
        Figures { under_way: rule.under_way().into(), limit: rule.limit().into() }
    }
}

impl Place {
    /// The reply is durable: how long it took says how busy the server is.
    pub const fn durable(&mut self) {
        self.durable = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = self.durable.then(|| now - self.entered);
        self.control.rule().leave(now - self.control.origin, took);
    }
}
