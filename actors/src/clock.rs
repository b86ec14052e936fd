//! Real time and real names: the one place that reads the system clock.

use std::time::{SystemTime, UNIX_EPOCH};

use raddle_domain::{
    ports::{Clock, Ids},
    time::UnixMs,
};
use uuid::Uuid;

/// The system's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else must ask")]
    fn now(&self) -> UnixMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMs(since.as_millis() as u64)
    }
}

/// UUIDv7 from the system's clock and randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct UuidIds;

impl Ids for UuidIds {
    fn mint(&self) -> Uuid {
        Uuid::now_v7()
    }
}
