//! The door of the runtime: the one place where commands are counted in and out, with the rule of
//! [`raddle_domain::admission`] behind it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use raddle_domain::admission::Admission;
use tokio::time::Instant;

/// Commands that may always be under way, however long they take: with one alone the disk, or the reader of what its turn
/// goes on from, would be idle while the other works.
const FLOOR: u32 = 2;

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

/// A turn that waits to go on, until it does or ends. It was accepted before, so it always may.
#[derive(Debug)]
pub(crate) struct Waits {
    control: Arc<AdmissionControl>,
    since: Instant,
    goes_on: bool,
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

    /// A turn waits to go on.
    pub fn wait(self: &Arc<Self>) -> Waits {
        let since = Instant::now();
        self.rule().wait(since - self.origin);
        Waits { control: self.clone(), since, goes_on: false }
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

impl Waits {
    /// It goes on: how long it waited says how busy the server is.
    pub fn go_on(mut self) {
        self.goes_on = true;
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let now = Instant::now();
        let waited = self.goes_on.then(|| now - self.since);
        self.control.rule().go_on(now - self.control.origin, waited);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = self.durable.then(|| now - self.entered);
        self.control.rule().leave(now - self.control.origin, took);
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::admission::INTERVAL;
    use tokio::time::advance;

    use super::*;

    const WAIT: Duration = Duration::from_millis(5);

    /// One that has learned that a lone command takes no time.
    async fn quick() -> Arc<AdmissionControl> {
        let control = AdmissionControl::new(400, WAIT);
        for _ in 0..2 {
            let mut places: Vec<_> = (0..10).map(|_| control.enter().unwrap()).collect();
            places.iter_mut().for_each(Place::durable);
            drop(places);
            advance(INTERVAL).await;
        }
        control
    }

    /// So many commands at once, each of which takes an interval.
    async fn wave(control: &Arc<AdmissionControl>, commands: usize, durable: bool) {
        let mut places: Vec<_> = (0..commands).map_while(|_| control.enter().ok()).collect();
        advance(INTERVAL).await;
        if durable {
            places.iter_mut().for_each(Place::durable);
        }
        drop(places);
    }

    #[tokio::test(start_paused = true)]
    async fn durable_replies_that_take_long_make_the_list_shorter_and_refusals_do_not() {
        let control = quick().await;
        wave(&control, 400, false).await;
        assert_eq!(control.figures().limit, 400);
        wave(&control, 400, true).await;
        assert_eq!(control.figures().limit, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_full_takes_what_ends_work_only_where_it_is_the_rule_that_made_it_short() {
        let control = quick().await;
        wave(&control, 400, true).await;
        let limit = control.figures().limit as usize;
        assert!(limit < 400);
        let _held: Vec<_> = (0..limit).map(|_| control.enter().unwrap()).collect();
        assert!(control.enter().is_err() && control.look().is_err());
        let ends: Vec<_> = (0..400).map_while(|_| control.enter_to_end_work().ok()).collect();
        assert_eq!((ends.len(), control.figures().under_way), (400 - limit, 400));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_comes_back_when_it_is_dropped() {
        let control = AdmissionControl::new(1, WAIT);
        let place = control.enter().unwrap();
        assert!(control.look().is_err() && control.enter_to_end_work().is_err());
        drop(place);
        assert!(control.look().is_ok() && control.enter().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_that_wait_long_make_the_list_shorter_and_those_that_end_meanwhile_do_not() {
        let control = quick().await;
        let wave = async |goes_on: bool| {
            let turns: Vec<_> = (0..300).map(|_| control.wait()).collect();
            advance(INTERVAL).await;
            turns.into_iter().for_each(|turn| if goes_on { turn.go_on() } else { drop(turn) });
        };
        wave(false).await;
        assert_eq!(control.figures().limit, 400);
        wave(true).await;
        assert_eq!(control.figures().limit, 90);
    }
}
