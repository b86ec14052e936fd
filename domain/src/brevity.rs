//! How many writes a commit may hold while somebody who writes little waits beside somebody who writes much: a write
//! that comes while a commit runs waits for that one and for its own, so neither is to be as long as a flood makes it.
//!
//! What is aimed at is a time, as a disk on which a sync takes long makes many writes cheap: a commit is to take no more
//! than a quarter longer than the smallest ones. What those take is learned from each of one or two writes, and one in
//! some is made that small for it; each that was full is compared with it, and the limit goes down by one when it took
//! longer and up by a quarter otherwise, so about four of five keep within.
//!
//! Time is an argument, as the span since any one origin. Absent on purpose: whose writes go into a commit
//! ([`crate::fair`]), and what limits one where nobody waits for others.

use std::time::Duration;

/// The limit is never lower.
pub const FEWEST: usize = 2;
/// The limit is never higher: more writes gain little.
pub const MOST: usize = 64;
/// What part of the time of the smallest commits a full one may take.
const STRETCH: f64 = 1.25;
/// What a commit in time raises the limit by.
const RAISE: f64 = 0.25;
/// How much of what is known a commit changes.
const SHARE: f64 = 1.0 / 8.0;
/// Which of so many short commits is a small one: under a flood that never ends there would be no other.
const PROBE: u32 = 32;
/// How long somebody who wrote little is expected back.
pub const MEMORY: Duration = Duration::from_secs(1);

/// What is known of commits.
#[derive(Debug, Clone)]
pub struct Brevity {
    limit: f64,
    commits: u32,
    /// Seconds that the smallest commits take.
    smallest: Option<f64>,
    /// When both sorts last waited at once.
    met: Option<Duration>,
}

impl Default for Brevity {
    fn default() -> Self {
        Self { limit: 8.0, commits: 0, smallest: None, met: None }
    }
}

impl Brevity {
    /// How many writes wait of the tenant with the fewest, and of the one with the most.
    pub fn waiting(&mut self, now: Duration, fewest: usize, most: usize) {
        if fewest <= FEWEST && most > FEWEST {
            self.met = Some(now);
        }
    }

    /// The most writes of a commit, if it is to be short.
    pub fn limit(&self, now: Duration) -> Option<usize> {
        let met = self.met.filter(|met| now.saturating_sub(*met) < MEMORY);
        let probes = self.commits % PROBE == PROBE - 1;
        met.map(|_| if probes { FEWEST } else { self.limit as usize })
    }

    /// A commit is done.
    pub fn took(&mut self, writes: usize, time: Duration) {
        let time = time.as_secs_f64();
        self.commits = self.commits.wrapping_add(1);
        if writes <= FEWEST {
            self.smallest = Some(self.smallest.map_or(time, |known| known + SHARE * (time - known)));
        }
        if let Some(smallest) = self.smallest.filter(|_| writes >= self.limit as usize) {
            let step = if time > STRETCH * smallest { -1.0 } else { RAISE };
            self.limit = (self.limit + step).clamp(FEWEST as f64, MOST as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The limit after many commits of a disk on which a sync takes so long, and each write so long beside it, while more
    /// waits than ever goes into one.
    fn learned(rule: &mut Brevity, sync: Duration, write: Duration) -> usize {
        rule.waiting(Duration::ZERO, 1, 1_000);
        for _ in 0..4_000 {
            let writes = rule.limit(Duration::ZERO).unwrap();
            rule.took(writes, sync + write * writes as u32);
        }
        rule.limit as usize
    }

    #[test]
    fn a_full_commit_takes_a_quarter_longer_than_a_small_one() {
        // 0.3 ms for two writes: a quarter more is enough for three.
        assert!((3..=4).contains(&learned(&mut Brevity::default(), MS / 5, MS / 20)));
        // What a sync costs anyway makes more of them bearable.
        assert!((5..=7).contains(&learned(&mut Brevity::default(), MS, MS / 20)));
        assert!((20..=22).contains(&learned(&mut Brevity::default(), 4 * MS, MS / 20)));
        assert_eq!(learned(&mut Brevity::default(), 50 * MS, MS / 20), MOST);
    }

    #[test]
    fn a_disk_that_changes_is_learned() {
        let mut rule = Brevity::default();
        learned(&mut rule, MS / 5, MS / 20);
        assert!(learned(&mut rule, 10 * MS, MS / 20) > 30);
        assert!(learned(&mut rule, MS / 20, MS / 5) <= 3);
    }

    #[test]
    fn commits_are_short_while_somebody_who_writes_little_may_come() {
        let mut rule = Brevity::default();
        assert_eq!(rule.limit(MS), None);
        // Both write much, or neither does.
        rule.waiting(MS, 3, 900);
        rule.waiting(MS, 1, 2);
        assert_eq!(rule.limit(MS), None);
        rule.waiting(MS, 2, 3);
        assert_eq!(rule.limit(MEMORY), Some(8));
        assert_eq!(rule.limit(MS + MEMORY), None);
    }

    #[test]
    fn commits_that_are_not_full_say_nothing_of_the_limit() {
        let mut rule = Brevity::default();
        rule.waiting(MS, 1, 900);
        rule.took(1, MS);
        for _ in 0..100 {
            rule.took(7, 60_000 * MS);
        }
        assert_eq!(rule.limit(MS), Some(8));
        rule.took(8, 60_000 * MS);
        assert_eq!(rule.limit(MS), Some(7));
    }
}
