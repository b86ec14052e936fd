//! What a tenant spent: sums by day, model, provider or thread.
//!
//! The store keeps what each thread spent on each day with each model, priced when it was spent. A report adds that
//! up and prices nothing, so that it says the same whenever it is asked for.

use std::collections::BTreeMap;

use raddle_domain::{
    command::Refused,
    id::{TenantId, ThreadId},
    ports::SpentBy,
    price::Totals,
    time::UnixMs,
};

use crate::handle::{Error, Runtime};

/// Milliseconds of a day. Days are those of UTC, which have no leap second in Unix time.
const DAY_MS: u64 = 86_400_000;
/// Days of threads read from one view.
const PAGE: usize = 1_000;
/// Rows of one report.
const ROWS: usize = 10_000;

/// Which days to add up, and how to part the sums.
#[derive(Debug, Clone, Copy, Default)]
pub struct UsageQuery {
    /// From the whole UTC day that holds this instant; from the first day if `None`.
    pub since: Option<UnixMs>,
    /// To the whole UTC day that holds this instant, which is counted; to the last day if `None`.
    pub until: Option<UnixMs>,
    pub group_by: GroupBy,
}

/// What the rows of a report stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupBy {
    #[default]
    Day,
    Model,
    Provider,
    Thread,
}

/// What one row of a report stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageKey {
    /// Days since 1970-01-01, UTC.
    Day(u32),
    /// The same name at two providers is two models.
    Model {
        provider: String,
        model: String,
    },
    Provider(String),
    Thread(ThreadId),
}

/// Sums, and the rows that they are made of in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageReport {
    pub totals: Totals,
    pub rows: Vec<(UsageKey, Totals)>,
}

impl Runtime {
    /// What the tenant spent. Read in pages: what is spent while it is read may be in it or not, and is in it once
    /// at most.
    pub async fn usage(&self, tenant: TenantId, query: UsageQuery) -> Result<UsageReport, Error> {
        let from = query.since.map_or(0, day);
        let to = query.until.map_or(u32::MAX, day);
        if from > to {
            let why = "begins on a day after that of `until`".to_owned();
            return Err(Refused::Invalid { field: "since", why }.into());
        }
        let mut sums = Sums::new(query.group_by);
        let mut after = None;
        loop {
            // One view per page: a long report must neither hold space on the disk nor keep a reader's place.
            let page = self.read_of(tenant, move |view| view.spent(tenant, from, to, after, PAGE)).await?;
            after = page.last().map(|last| (last.day, last.thread));
            for spent in &page {
                sums.add(spent);
            }
            if sums.rows.len() > ROWS {
                let why = format!("gives more than {ROWS} rows; ask for fewer days");
                return Err(Refused::Invalid { field: "group_by", why }.into());
            }
            if page.len() < PAGE {
                return Ok(sums.report());
            }
        }
    }
}

/// The UTC day of an instant.
fn day(at: UnixMs) -> u32 {
    u32::try_from(at.0 / DAY_MS).unwrap_or(u32::MAX)
}

/// A report while it is added up.
struct Sums {
    group_by: GroupBy,
    totals: Totals,
    rows: BTreeMap<UsageKey, Totals>,
}

impl Sums {
    fn new(group_by: GroupBy) -> Self {
        Self { group_by, totals: Totals::default(), rows: BTreeMap::new() }
    }

    fn add(&mut self, by: &SpentBy) {
        for spent in &by.rows {
            let key = match self.group_by {
                GroupBy::Day => UsageKey::Day(by.day),
                GroupBy::Model => UsageKey::Model { provider: spent.engine.clone(), model: spent.model.clone() },
                GroupBy::Provider => UsageKey::Provider(spent.engine.clone()),
                GroupBy::Thread => UsageKey::Thread(by.thread),
            };
            self.totals.add(&spent.totals);
            self.rows.entry(key).or_default().add(&spent.totals);
        }
    }

    fn report(self) -> UsageReport {
        UsageReport { totals: self.totals, rows: self.rows.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::ports::Spent;

    use super::*;

    fn thread(n: u8) -> ThreadId {
        ThreadId::from_bytes([n; 16])
    }

    /// What a thread spent on a day: rows `(engine, model, input tokens)`, one turn each.
    fn by(day: u32, n: u8, rows: &[(&str, &str, u64)]) -> SpentBy {
        let row = |&(engine, model, input_tokens): &(&str, &str, u64)| Spent {
            day,
            engine: engine.into(),
            model: model.into(),
            totals: Totals { turns: 1, model_calls: 1, input_tokens, ..Totals::default() },
        };
        SpentBy { day, thread: thread(n), rows: rows.iter().map(row).collect() }
    }

    fn grouped(group_by: GroupBy) -> UsageReport {
        let mut sums = Sums::new(group_by);
        sums.add(&by(7, 2, &[("b", "m", 1), ("a", "n", 10)]));
        sums.add(&by(7, 1, &[("a", "m", 100)]));
        sums.add(&by(8, 2, &[("b", "m", 1_000)]));
        let report = sums.report();
        assert_eq!((report.totals.turns, report.totals.input_tokens), (4, 1_111));
        let mut all = Totals::default();
        report.rows.iter().for_each(|(_, totals)| all.add(totals));
        assert_eq!(all, report.totals, "the rows are what the totals are made of");
        report
    }

    fn rows(group_by: GroupBy) -> Vec<(UsageKey, u64)> {
        grouped(group_by).rows.into_iter().map(|(key, totals)| (key, totals.input_tokens)).collect()
    }

    #[test]
    fn sums_are_parted_by_what_was_asked_for_in_the_order_of_their_keys() {
        assert_eq!(rows(GroupBy::Day), [(UsageKey::Day(7), 111), (UsageKey::Day(8), 1_000)]);
        assert_eq!(rows(GroupBy::Thread), [(UsageKey::Thread(thread(1)), 100), (UsageKey::Thread(thread(2)), 1_011)]);
        let provider = |name: &str| UsageKey::Provider(name.into());
        assert_eq!(rows(GroupBy::Provider), [(provider("a"), 110), (provider("b"), 1_001)]);
    }

    #[test]
    fn one_name_at_two_providers_is_two_models() {
        let model = |provider: &str, model: &str| UsageKey::Model { provider: provider.into(), model: model.into() };
        assert_eq!(rows(GroupBy::Model), [(model("a", "m"), 100), (model("a", "n"), 10), (model("b", "m"), 1_001)]);
    }

    #[test]
    fn a_day_begins_at_midnight_utc() {
        assert_eq!([UnixMs(0), UnixMs(DAY_MS - 1), UnixMs(DAY_MS)].map(day), [0, 0, 1]);
        assert_eq!(day(UnixMs(u64::MAX)), u32::MAX);
    }
}
