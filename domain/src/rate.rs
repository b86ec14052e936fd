//! How often somebody may ask: a token bucket. Time is an argument.

use std::{num::NonZeroU32, time::Duration};

use crate::time::UnixMs;

/// A bucket's parts: a request takes so many that a second fills in as many as the rate allows.
const PARTS: u64 = 1_000;

/// How many requests may come at once, and how fast that grows again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: NonZeroU32,
    /// At once after a silence.
    pub burst: NonZeroU32,
}

/// What is left of a rate. Full at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// What was taken of it and is not filled in again, as of `at`.
    taken: u64,
    at: UnixMs,
}

impl Bucket {
    /// Takes one request's worth, or says how long it takes until there is one. A refused request takes nothing. A
    /// clock that was set back fills nothing in, and takes nothing.
    pub fn take(&mut self, rate: Rate, now: UnixMs) -> Result<(), Duration> {
        let per_second = u64::from(rate.per_second.get());
        let full = u64::from(rate.burst.get()) * PARTS;
        // A part a millisecond for each request in a second.
        let filled = now.since(self.at).saturating_mul(per_second);
        // One that was made smaller is full at once, not in debt.
        self.taken = self.taken.saturating_sub(filled).min(full);
        self.at = now;
        let over = (self.taken + PARTS).saturating_sub(full);
        if over > 0 {
            return Err(Duration::from_millis(over.div_ceil(per_second)));
        }
        self.taken += PARTS;
        Ok(())
    }

    /// Requests that were made lately and still count.
    pub fn used(&self, rate: Rate, now: UnixMs) -> u64 {
        let filled = now.since(self.at).saturating_mul(u64::from(rate.per_second.get()));
        self.taken.saturating_sub(filled).div_ceil(PARTS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second: NonZeroU32::new(per_second).unwrap(), burst: NonZeroU32::new(burst).unwrap() }
    }

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    fn later(ms: u64) -> UnixMs {
        UnixMs(NOW.0 + ms)
    }

    #[test]
    fn a_burst_is_taken_at_once_and_comes_back_at_the_rate() {
        let (mut bucket, rate) = (Bucket::default(), rate(2, 3));
        for _ in 0..3 {
            bucket.take(rate, NOW).unwrap();
        }
        assert_eq!(bucket.take(rate, NOW), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(rate, later(499)), Err(Duration::from_millis(1)));
        bucket.take(rate, later(500)).unwrap();
        assert_eq!(bucket.take(rate, later(500)), Err(Duration::from_millis(500)));
        // A long silence is worth a burst, not more.
        for _ in 0..3 {
            bucket.take(rate, later(1_000_000)).unwrap();
        }
        bucket.take(rate, later(1_000_000)).unwrap_err();
    }

    #[test]
    fn who_comes_when_he_was_told_to_is_let_in() {
        for per_second in [1, 3, 7, 999, 100_000] {
            let (mut bucket, rate) = (Bucket::default(), rate(per_second, 1));
            bucket.take(rate, NOW).unwrap();
            let wait = bucket.take(rate, NOW).unwrap_err();
            bucket.take(rate, NOW.after(wait)).unwrap();
        }
    }

    #[test]
    fn a_clock_that_is_set_back_gives_nothing_and_takes_nothing() {
        let (mut bucket, rate) = (Bucket::default(), rate(1, 2));
        bucket.take(rate, later(10_000)).unwrap();
        bucket.take(rate, NOW).unwrap();
        assert_eq!(bucket.take(rate, NOW), Err(Duration::from_secs(1)));
        bucket.take(rate, later(1_000)).unwrap();
    }

    #[test]
    fn a_smaller_bucket_is_full_not_in_debt() {
        let mut bucket = Bucket::default();
        for _ in 0..100 {
            bucket.take(rate(1, 100), NOW).unwrap();
        }
        assert_eq!(bucket.take(rate(1, 2), NOW), Err(Duration::from_secs(1)));
    }

    proptest! {
        /// In any time, no more are let in than a burst and what the rate allows in it; and who was refused was over it.
        #[test]
        fn no_more_come_through_than_the_rate_allows(
            per_second in 1_u32..50,
            burst in 1_u32..20,
            pauses in prop::collection::vec(0_u64..300, 1..300),
        ) {
            let (mut bucket, rate) = (Bucket::default(), rate(per_second, burst));
            let (mut now, mut let_in) = (NOW, Vec::new());
            for pause in pauses {
                now = UnixMs(now.0 + pause);
                if bucket.take(rate, now).is_ok() {
                    let_in.push(now);
                }
            }
            for (first, since) in let_in.iter().enumerate() {
                for (last, until) in let_in.iter().enumerate().skip(first) {
                    let (count, ms) = ((last - first + 1) as u64, until.since(*since));
                    prop_assert!(count <= u64::from(burst) + ms * u64::from(per_second) / 1_000 + 1);
                }
            }
        }
    }
}
