//! How long things took, in buckets that grow with what they hold: none is wider than a thirty-second of where it begins,
//! so that any percentile is right to three in a hundred, from a microsecond to an hour, in a few kilobytes.
//!
//! The idea is that of Gil Tene's HdrHistogram. Absent on purpose: its configuration, and its file format.

use std::time::Duration;

/// Bits of a value that its bucket keeps.
const PRECISION: u32 = 5;
const PER_OCTAVE: usize = 1 << PRECISION;

/// Counts by microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum: u64,
    least: u64,
    most: u64,
}

/// A bucket that holds something: from `low`, to below `high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    pub low: u64,
    pub high: u64,
    pub count: u64,
}

fn bucket_of(value: u64) -> usize {
    let octave = value.checked_ilog2().unwrap_or(0).saturating_sub(PRECISION);
    octave as usize * PER_OCTAVE + (value >> octave) as usize
}

fn low_of(bucket: usize) -> u64 {
    let octave = (bucket / PER_OCTAVE).saturating_sub(1);
    ((bucket - octave * PER_OCTAVE) as u64) << octave
}

impl Histogram {
    pub fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(1 << 42);
        let bucket = bucket_of(micros);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.least = if self.count == 0 { micros } else { self.least.min(micros) };
        self.most = self.most.max(micros);
        self.count += 1;
        self.sum = self.sum.saturating_add(micros);
    }

    pub const fn count(&self) -> u64 {
        self.count
    }

    /// In microseconds.
    pub const fn min(&self) -> u64 {
        self.least
    }

    pub const fn max(&self) -> u64 {
        self.most
    }

    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The value that a part of all does not exceed, from 0 to 1; to the precision of a bucket, and exact at the end.
    pub fn quantile(&self, part: f64) -> u64 {
        let rank = ((self.count as f64 * part).ceil() as u64).clamp(1, self.count.max(1));
        let mut before = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            before += count;
            if before >= rank {
                return (low_of(bucket + 1) - 1).clamp(self.least, self.most);
            }
        }
        self.most
    }

    /// The buckets that hold something, in order.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> {
        let held = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        held.map(|(bucket, count)| Bucket { low: low_of(bucket), high: low_of(bucket + 1), count: *count })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(micros: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        micros.iter().for_each(|micros| histogram.record(Duration::from_micros(*micros)));
        histogram
    }

    #[test]
    fn buckets_follow_each_other_and_none_is_wider_than_its_share() {
        for bucket in 0..1_200 {
            let (low, high) = (low_of(bucket), low_of(bucket + 1));
            assert!(low < high);
            assert_eq!((bucket_of(low), bucket_of(high - 1)), (bucket, bucket));
            assert!(high - low == 1 || (high - low) * PER_OCTAVE as u64 <= low, "{low} to {high}");
        }
    }

    #[test]
    fn nothing_has_no_percentiles() {
        let nothing = Histogram::default();
        assert_eq!((nothing.count(), nothing.quantile(0.5), nothing.mean(), nothing.max()), (0, 0, 0, 0));
    }

    #[test]
    fn the_greatest_value_is_exact() {
        let histogram = of(&[10, 20, 1_000_003]);
        assert_eq!((histogram.quantile(1.0), histogram.max(), histogram.min()), (1_000_003, 1_000_003, 10));
        assert_eq!(histogram.quantile(0.0), 10);
    }

    proptest! {
        #[test]
        fn a_percentile_is_right_to_the_width_of_a_bucket(
            mut micros in prop::collection::vec(0..10_000_000_u64, 1..200),
            part in 0.0..=1.0_f64,
        ) {
            let histogram = of(&micros);
            micros.sort_unstable();
            let rank = ((micros.len() as f64 * part).ceil() as usize).clamp(1, micros.len());
            let (exact, found) = (micros[rank - 1], histogram.quantile(part));
            prop_assert!(exact <= found && found <= exact + exact / PER_OCTAVE as u64 + 1, "{} for {}", found, exact);
            prop_assert_eq!(histogram.buckets().map(|bucket| bucket.count).sum::<u64>(), micros.len() as u64);
        }
    }
}
