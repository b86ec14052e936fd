//! The rules of hooks: which events they want, how long they wait for a sink, what they do about a sink that refuses.

use std::time::Duration;

use crate::event;

/// What comes in pieces, and whole at its end: wanted by those who name it, not by those who want everything.
const PIECES: &str = "item.delta";

/// The pause after the first failure in a row, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Times that a sink must have refused an event before a hook that may skip it does.
pub const REFUSALS: u32 = 5;

/// Which events a hook wants, by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter(Vec<String>);

/// A text that can match no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("holds `{0}`, which is neither an event, nor `*`, nor a family of events such as `turn.*`")]
pub struct BadPattern(String);

impl Default for EventFilter {
    /// Everything but pieces.
    fn default() -> Self {
        Self(vec!["*".to_owned()])
    }
}

impl EventFilter {
    /// Reads patterns. One that no event will ever match is a mistake, and would be noticed late.
    pub fn parse(patterns: Vec<String>) -> Result<Self, BadPattern> {
        match patterns.iter().find(|pattern| !event::names().iter().any(|name| matches(pattern, name))) {
            Some(bad) => Err(BadPattern(bad.clone())),
            None => Ok(Self(patterns)),
        }
    }

    pub fn patterns(&self) -> &[String] {
        &self.0
    }

    pub fn wants(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, name))
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        None => pattern == name,
        Some(family) => {
            let fits = family.is_empty() || (family.ends_with('.') && name.starts_with(family));
            fits && name != PIECES
        }
    }
}

/// What a hook does about an event that its sink says it will never take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnReject {
    /// Offers it for ever. What follows it waits.
    #[default]
    Retry,
    /// Goes on without it, once it was refused [`REFUSALS`] times.
    Skip,
}

/// Where a hook begins that was never there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Since {
    /// With what happens from now on.
    #[default]
    Now,
    /// With the first event that is kept.
    Beginning,
}

/// How long to wait after so many failures in a row.
pub fn pause(failures: u32) -> Duration {
    let (first, longest) = PAUSES;
    first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(patterns: &[&str]) -> Result<EventFilter, BadPattern> {
        EventFilter::parse(patterns.iter().map(|pattern| (*pattern).to_owned()).collect())
    }

    #[test]
    fn pieces_go_to_those_who_name_them() {
        for all in [EventFilter::default(), filter(&["*"]).unwrap(), filter(&["item.*"]).unwrap()] {
            assert!(all.wants("item.completed") && !all.wants("item.delta"), "{all:?}");
        }
        let named = filter(&["*", "item.delta"]).unwrap();
        assert!(named.wants("item.delta") && named.wants("turn.started"));
    }

    #[test]
    fn a_family_is_its_members_and_nobody_else() {
        let turns = filter(&["turn.*", "approval.required"]).unwrap();
        let wanted: Vec<_> = event::names().iter().filter(|name| turns.wants(name)).collect();
        assert!(wanted.iter().all(|name| name.starts_with("turn.") || **name == "approval.required"));
        assert!(turns.wants("turn.completed") && turns.wants("approval.required"));
        assert!(!turns.wants("approval.decided") && !turns.wants("turn") && !turns.wants("turnover.x"));
        assert!(!filter(&[]).unwrap().wants("turn.started"));
    }

    #[test]
    fn a_pattern_that_nothing_matches_is_refused() {
        for bad in ["", "turns.*", "turn", "turn*", "turn.", "TURN.*", "**", "*.started", "item.deltas", "turn.*.x"] {
            assert_eq!(filter(&["*", bad]), Err(BadPattern(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pauses: Vec<_> = (1..=9).map(|failures| pause(failures).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(pause(u32::MAX).as_secs(), 60);
    }
}
