//! Writes that wait for a commit: in the order in which they came while they are one tenant's, otherwise the tenants
//! in turn by what their writes weigh, in bytes. Within a tenant the order is always that in which they came.
//!
//! While somebody who writes little shares the store with somebody who writes much, a commit holds one turn of each
//! tenant, and more only up to what [`Brevity`] bears. What of a flood does not fit waits, and where it is the text of
//! answers it grows together meanwhile, so what is lost of throughput is less than it seems.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use raddle_domain::{
    brevity::Brevity,
    fair::{Choice, Fair, Next},
    id::TenantId,
    ports::{Append, Write},
};

use tokio::time::Instant;

use super::{BATCH_BYTES, Reply, size};

/// Who waits for a write, and since when.
pub(super) type Waiter = (Reply, Instant);

/// The weight of a tenant.
pub type Weigh = Arc<dyn Fn(TenantId) -> NonZeroU32 + Send + Sync>;

/// Bytes that a turn in the round is worth: about one step of a thread.
const QUANTUM: u64 = 4 * 1024;

pub(super) struct Queue {
    /// Nobody's: tenants are not told apart.
    weigh: Option<Weigh>,
    /// All that waits, while it is one tenant's.
    one: VecDeque<(Write, Waiter)>,
    /// All that waits, otherwise.
    many: Fair<(Write, Waiter)>,
    brevity: Brevity,
    origin: Instant,
}

impl Queue {
    pub fn new(weigh: Option<Weigh>) -> Self {
        Self {
            weigh,
            one: VecDeque::new(),
            many: Fair::new(QUANTUM),
            brevity: Brevity::default(),
            origin: Instant::now(),
        }
    }

    pub fn push(&mut self, write: Write, waiter: Waiter) {
        let Some(weigh) = &self.weigh else { return self.one.push_back((write, waiter)) };
        let of = tenant(&write);
        let alone = self.many.is_empty() && self.one.front().is_none_or(|(first, _)| tenant(first) == of);
        if alone {
            return self.one.push_back((write, waiter));
        }
        for (write, waiter) in self.one.drain(..).chain([(write, waiter)]) {
            let of = tenant(&write);
            self.many.enqueue(of, weigh(of), size(&write) as u64, (write, waiter));
        }
    }

    /// Takes what goes into the next commit.
    pub fn take(&mut self, most: usize) -> (Vec<Write>, Vec<Waiter>) {
        let now = self.origin.elapsed();
        if let Some((fewest, most)) = self.many.extremes() {
            self.brevity.waiting(now, fewest, most);
        }
        let few = self.brevity.limit(now).unwrap_or(most);
        let (mut bytes, mut taken, mut turns) = (0, (Vec::new(), Vec::new()), HashMap::new());
        while taken.0.len() < most {
            let enough = taken.0.len() >= few;
            let mut fits = |(write, _): &(Write, Waiter)| {
                let first = bytes == 0;
                bytes += size(write);
                first || bytes <= BATCH_BYTES
            };
            let next = match self.many.is_empty() {
                true => self.one.pop_front_if(|next| !enough && fits(next)),
                false => {
                    let next = self.many.serve_by(|Next { tenant, turn, item }| {
                        let again = *turns.entry(tenant).or_insert(turn) != turn;
                        if (again && enough) || !fits(item) { Choice::Stop } else { Choice::Serve }
                    });
                    next.map(|(_, next)| next)
                }
            };
            let Some((write, waiter)) = next else { break };
            taken.0.push(write);
            taken.1.push(waiter);
        }
        taken
    }

    /// What was taken is stored: so many writes took so long.
    pub fn took(&mut self, writes: usize, time: Duration) {
        if self.weigh.is_some() {
            self.brevity.took(writes, time);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.one.is_empty() && self.many.is_empty()
    }

    /// Takes everything back from the queue: who waits for it.
    pub fn clear(&mut self) -> Vec<Reply> {
        let many = self.many.drain().map(|(_, waiting)| waiting);
        self.one.drain(..).chain(many).map(|(_, (reply, _))| reply).collect()
    }
}

/// Whose a write is.
pub(crate) fn tenant(write: &Write) -> TenantId {
    match write {
        Write::Append(Append { key, .. }) | Write::Purge { key } | Write::Erase { key, .. } => key.tenant,
        Write::Put { tenant, .. }
        | Write::Documents { tenant, .. }
        | Write::Forget { tenant, .. }
        | Write::Close { tenant, .. }
        | Write::Sweep { tenant, .. }
        | Write::Import { tenant, .. }
        | Write::Open { tenant, .. } => *tenant,
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::{
        brevity::MEMORY,
        ports::{Document, DocumentKind},
    };
    use tokio::sync::oneshot;

    use super::*;

    fn queue(weight: u32) -> Queue {
        Queue::new(Some(Arc::new(move |tenant| {
            NonZeroU32::new(if tenant == named("heavy") { weight } else { 1 }).unwrap()
        })))
    }

    fn named(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    fn push(queue: &mut Queue, name: &str, n: u8, bytes: usize) {
        let document = Document { kind: DocumentKind::Policy, id: [n; 32], json: vec![0; bytes] };
        queue.push(
            Write::Put { tenant: named(name), documents: vec![document] },
            (oneshot::channel().0, Instant::now()),
        );
    }

    /// Whose writes the next commit holds, and which.
    fn next(queue: &mut Queue) -> Vec<(String, u8)> {
        let name = |write: Write| match write {
            Write::Put { tenant, documents } => (tenant.to_string(), documents[0].id[0]),
            other => panic!("{other:?}"),
        };
        let (writes, replies) = queue.take(1_024);
        assert_eq!(writes.len(), replies.len());
        writes.into_iter().map(name).collect()
    }

    #[test]
    fn the_write_of_who_writes_once_is_next_after_one_of_who_floods() {
        let mut queue = queue(1);
        (0..30).for_each(|n| push(&mut queue, "flood", n, 4_000));
        push(&mut queue, "quiet", 0, 4_000);
        let commits: Vec<_> = std::iter::from_fn(|| Some(next(&mut queue)).filter(|next| !next.is_empty())).collect();
        assert_eq!(commits[0][1], ("quiet".to_owned(), 0));
        // None of them is longer than eight, which is what is borne before anything is known.
        assert_eq!(commits.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 8, 7]);
        let flood = commits.iter().flatten().filter(|(tenant, _)| tenant == "flood").map(|(_, n)| *n);
        assert!(flood.eq(0..30));
    }

    #[test]
    fn a_short_commit_holds_a_turn_of_each_tenant_however_many_they_are() {
        let mut queue = queue(1);
        (0..20).for_each(|n| push(&mut queue, "flood", n, 4_000));
        for tenant in 0..30 {
            push(&mut queue, &format!("quiet-{tenant}"), 0, 4_000);
        }
        let first = next(&mut queue);
        assert_eq!(first.len(), 31);
        assert_eq!(first.iter().filter(|(tenant, _)| tenant == "flood").count(), 1);
    }

    #[test]
    fn writes_are_taken_by_weight_and_by_what_they_weigh() {
        let mut queue = queue(2);
        for n in 0..200 {
            push(&mut queue, "light", n, 4_000 - 128);
            push(&mut queue, "heavy", n, 4_000 - 128);
            push(&mut queue, "long", n, 12_000 - 128);
        }
        let first = next(&mut queue);
        let of = |name: &str| first.iter().filter(|(tenant, _)| tenant == name).count();
        assert!((of("heavy") as i64 - 2 * of("light") as i64).abs() <= 2, "{first:?}");
        assert!((of("light") as i64 - 3 * of("long") as i64).abs() <= 3, "{first:?}");
    }

    #[test]
    fn commits_are_long_while_all_write_much_and_again_when_who_writes_little_stays_away() {
        let mut queue = queue(1);
        let flood = |queue: &mut Queue, name| (0..100).for_each(|n| push(queue, name, n, 10));
        flood(&mut queue, "a");
        flood(&mut queue, "b");
        assert_eq!(next(&mut queue).len(), 200);
        flood(&mut queue, "a");
        push(&mut queue, "b", 0, 10);
        let short = next(&mut queue).len();
        assert!(short < 50, "{short}");
        queue.clear();
        // He may come back while a commit of one that writes alone runs.
        flood(&mut queue, "a");
        assert_eq!(next(&mut queue).len(), 8);
        queue.clear();
        queue.origin -= MEMORY;
        flood(&mut queue, "a");
        assert_eq!(next(&mut queue).len(), 100);
    }

    #[test]
    fn where_tenants_are_not_told_apart_the_oldest_is_first_and_commits_are_long() {
        let mut queue = Queue::new(None);
        (0..100).for_each(|n| push(&mut queue, "flood", n, 10));
        push(&mut queue, "quiet", 0, 10);
        let first = next(&mut queue);
        assert_eq!((first.len(), first[100].0.as_str()), (101, "quiet"));
    }

    #[test]
    fn a_commit_holds_about_so_many_bytes_and_what_does_not_fit_is_next() {
        let mut queue = queue(1);
        for n in 0..3 {
            push(&mut queue, "a", n, BATCH_BYTES / 2);
            push(&mut queue, "b", n, BATCH_BYTES / 2);
        }
        let mut seen = Vec::new();
        while !queue.is_empty() {
            let next = next(&mut queue);
            assert_eq!(next.len(), 1, "two of them are too large by what goes with them");
            seen.extend(next);
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.iter().filter(|(tenant, _)| tenant == "a").map(|(_, n)| *n).eq(0..3));
    }
}
