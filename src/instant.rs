//! Instants as people write them: a date, or a date with its time.

use chrono::{DateTime, NaiveDate, NaiveTime};
use raddle_domain::time::UnixMs;

/// What a text must be to be read here.
pub const EXPECTED: &str = "a date such as 2026-03-01, or an RFC 3339 instant such as 2026-03-01T12:00:00Z";

/// Reads a date, which is its first instant in UTC, or an RFC 3339 instant. `None` for anything else, and for what
/// is before 1970.
pub fn read(text: &str) -> Option<UnixMs> {
    let instant = match text.len() {
        // The length is part of the form: 2026-3-1 could be taken for two days.
        10 => NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_time(NaiveTime::MIN).and_utc(),
        _ => DateTime::parse_from_rfc3339(text).ok()?.to_utc(),
    };
    u64::try_from(instant.timestamp_millis()).ok().map(UnixMs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_its_first_instant_in_utc() {
        assert_eq!(read("1970-01-02"), Some(UnixMs(86_400_000)));
        assert_eq!(read("1970-01-02"), read("1970-01-02T00:00:00Z"));
        assert_eq!(read("1970-01-02T01:00:00.5+01:00"), Some(UnixMs(86_400_500)));
    }

    #[test]
    fn what_is_neither_a_date_nor_an_instant_is_refused() {
        for text in
            ["", "today", "2026-3-1", "2026-02-30", "20260301", "2026-03-01T00:00:00", "1969-12-31", "+026-03-01"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
