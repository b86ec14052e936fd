//! Time as an argument: milliseconds since the Unix epoch, written as RFC 3339 UTC with milliseconds.

use std::{fmt, time::Duration};

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instant, in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// The last instant that the text form can name.
    pub const LAST: Self = Self(253_402_300_799_999);

    /// The instant `span` later, or the last one.
    pub fn after(self, span: Duration) -> Self {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(span)).min(Self::LAST)
    }

    /// Milliseconds from `earlier` to here; zero when the clock went backwards.
    pub const fn since(self, earlier: UnixMs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for UnixMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instant = DateTime::from_timestamp_millis((*self).min(Self::LAST).0 as i64).unwrap_or_default();
        f.write_str(&instant.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl Serialize for UnixMs {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixMs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        let instant = DateTime::parse_from_rfc3339(&text).map_err(serde::de::Error::custom)?;
        u64::try_from(instant.timestamp_millis())
            .map(Self)
            .map_err(|_| serde::de::Error::custom("an instant before 1970"))
    }
}

impl utoipa::PartialSchema for UnixMs {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::DateTime)))
            .into()
    }
}
impl utoipa::ToSchema for UnixMs {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_reads_back_from_its_text() {
        let instant = UnixMs(1_795_000_000_007);
        let text = serde_json::to_string(&instant).unwrap();
        assert_eq!(text, "\"2026-11-18T11:06:40.007Z\"");
        assert_eq!(serde_json::from_str::<UnixMs>(&text).unwrap(), instant);
    }

    #[test]
    fn nothing_is_later_than_what_can_be_written_and_read_back() {
        let last = UnixMs(1_000).after(Duration::MAX);
        assert_eq!(last, UnixMs::LAST);
        let text = serde_json::to_string(&last).unwrap();
        assert_eq!(text, "\"9999-12-31T23:59:59.999Z\"");
        assert_eq!(serde_json::from_str::<UnixMs>(&text).unwrap(), last);
        assert_eq!(UnixMs(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }
}
