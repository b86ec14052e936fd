//! What of each tenant counts against its quotas, and the refusals that follow.
//!
//! What is durable (threads, prompts that wait) is counted here as of every step that was saved, and, before that, by
//! what is [`Reserved`] for steps that are about to be: so a thousand requests at once get exactly as many as there is
//! room for. A reservation ends as its step does: kept, undone, or in doubt where nobody knows whether it was saved;
//! then what is stored is read again, once nothing is [`Underway`]: what is read may hold it or not.
//!
//! Nothing is refused after it was accepted. A turn that goes on, a prompt that is promoted, what agents in flight
//! write, all of it may lead beyond a bound; only what a caller asks for anew is held against it. So `stored_bytes` can
//! be passed by the last command that was let in, and by the turns of prompts that were accepted before.
//!
//! Runs, jobs and schedules are no threads. What they store counts as bytes.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use raddle_domain::{
    command::Refused,
    id::TenantId,
    ports::{Figures, Room, StoreError},
    rate::{Bucket, Rate},
    tenant::Quotas,
};
use serde::Serialize;

use crate::{
    handle::{Error, Runtime},
    system::Shared,
    tenants::Account,
};

/// What is counted of one tenant.
#[derive(Default)]
pub(crate) struct Tally {
    durable: Mutex<Durable>,
    /// Turns at work.
    turns: Mutex<u64>,
    /// Bytes that were let in and are not stored yet.
    coming: Mutex<u64>,
    requests: Mutex<Bucket>,
}

/// What counts of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Threads,
    Queued,
}

#[derive(Default)]
struct Durable {
    /// With what is reserved.
    counts: [u64; 2],
    /// Steps under way that may change them.
    underway: u64,
    /// How often the counts were changed.
    changes: u64,
    /// Whether `counts` began with what is stored.
    known: bool,
    /// Whether what is stored may be something else.
    doubted: bool,
}

/// A bound, and how far it is used up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuotaStatus {
    /// The quota's name.
    pub limit: &'static str,
    pub used: u64,
    /// None: the server's own bounds alone.
    pub max: Option<u64>,
}

/// A step that changes what counts, until it is known what became of it. Dropped, that is nobody knows.
pub(crate) struct Underway {
    account: Arc<Account>,
    ended: bool,
}

/// Room for one more of something, for as long.
pub(crate) struct Reserved {
    underway: Underway,
    what: What,
}

impl Tally {
    fn durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn coming(&self) -> MutexGuard<'_, u64> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, u64> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is stored has to be read before anything is counted.
    fn is_unknown(&self) -> bool {
        let durable = self.durable();
        !durable.known || (durable.doubted && durable.underway == 0)
    }

    /// Takes what is stored as what there is. Blocks.
    fn learn(&self, read: impl FnOnce() -> Result<Figures, StoreError>) -> Result<(), StoreError> {
        let before = {
            let durable = self.durable();
            (!durable.known).then_some(durable.changes)
        };
        if let Some(before) = before {
            // The first time it may take long, and what is loaded has to count meanwhile: in doubt, until nothing is
            // under way.
            let found = read()?;
            let mut durable = self.durable();
            // Somebody else was quicker: what was counted since then is not in what was found here.
            if !durable.known {
                durable.doubted = durable.underway > 0 || durable.changes != before;
                durable.take(found);
            }
            return Ok(());
        }
        let mut durable = self.durable();
        if durable.doubted && durable.underway == 0 {
            durable.take(read()?);
            durable.doubted = false;
        }
        Ok(())
    }

    /// One less, or so many. Where what is stored is read again anyway, nobody can say whether they are counted.
    pub fn gone(&self, what: What, count: u64) {
        let mut durable = self.durable();
        durable.changes += 1;
        if durable.doubted {
            return;
        }
        durable.less(what, count);
    }

    /// What was reserved for nobody is there all the same.
    pub fn come(&self, what: What, count: u64) {
        let mut durable = self.durable();
        durable.changes += 1;
        durable.counts[what as usize] += count;
    }

    /// What is stored may have changed in a way that nobody can say.
    pub fn doubt(&self) {
        self.durable().doubted = true;
    }
}

impl Durable {
    fn begins(&mut self) {
        self.underway += 1;
        self.changes += 1;
    }

    fn less(&mut self, what: What, count: u64) {
        let counted = &mut self.counts[what as usize];
        *counted = counted.saturating_sub(count);
    }

    fn take(&mut self, found: Figures) {
        self.known = true;
        self.counts = [found.threads, found.queued];
    }
}

impl Underway {
    pub fn new(account: Arc<Account>) -> Self {
        account.tally.durable().begins();
        Self { account, ended: false }
    }

    /// What it changed is counted.
    pub fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut durable = self.account.tally.durable();
        durable.underway = durable.underway.saturating_sub(1);
        durable.changes += 1;
        durable.doubted |= !self.ended;
    }
}

impl Reserved {
    /// Room for one more; refused with the bound where there is none.
    pub fn new(account: &Arc<Account>, what: What, most: Option<u64>) -> Result<Self, u64> {
        let mut durable = account.tally.durable();
        if let Some(most) = most
            && durable.counts[what as usize] >= most
        {
            return Err(most);
        }
        durable.counts[what as usize] += 1;
        durable.begins();
        drop(durable);
        Ok(Self { underway: Underway { account: account.clone(), ended: false }, what })
    }

    /// It is stored.
    pub fn keep(self) {
        self.underway.end();
    }

    /// It is not.
    pub fn undo(self) {
        self.underway.account.tally.durable().less(self.what, 1);
        self.underway.end();
    }
}

/// What a step adds beside the text that a caller sends, about.
const STEP_BYTES: u64 = 512;

/// Bytes that were let in, until they are stored or are not.
pub(crate) struct Coming {
    account: Arc<Account>,
    bytes: u64,
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut coming = self.account.tally.coming();
        *coming = coming.saturating_sub(self.bytes);
    }
}

/// A turn that is at work, while it is.
pub(crate) struct Seat(Arc<Account>);

impl Seat {
    /// Takes a seat whatever the bound: what was accepted goes on.
    pub fn take(account: Arc<Account>) -> Self {
        *account.tally.turns() += 1;
        Self(account)
    }

    fn take_within(account: Arc<Account>, most: Option<u64>) -> Result<Self, u64> {
        let mut turns = account.tally.turns();
        if let Some(most) = most
            && *turns >= most
        {
            return Err(most);
        }
        *turns += 1;
        drop(turns);
        Ok(Self(account))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut turns = self.0.tally.turns();
        *turns = turns.saturating_sub(1);
    }
}

/// The room of a tenant as one step of a thread finds it, and what the step took of it.
pub(crate) struct StepRoom<'s> {
    shared: &'s Shared,
    tenant: TenantId,
    /// Whether the thread is at work: then another turn of it takes no more.
    seated: bool,
    seat: RefCell<Option<Seat>>,
    prompts: RefCell<Vec<Reserved>>,
}

impl<'s> StepRoom<'s> {
    pub fn new(shared: &'s Shared, tenant: TenantId, seated: bool) -> Self {
        Self { shared, tenant, seated, seat: RefCell::default(), prompts: RefCell::default() }
    }

    fn account(&self) -> (Arc<Account>, Quotas) {
        let account = self.shared.tenants.account(self.tenant);
        let quotas = self.shared.tenants.quotas(&account);
        (account, quotas)
    }

    /// What the step took.
    pub fn taken(self) -> (Option<Seat>, Vec<Reserved>) {
        (self.seat.into_inner(), self.prompts.into_inner())
    }
}

impl Room for StepRoom<'_> {
    fn turn(&self) -> Result<(), Refused> {
        if self.seated || self.seat.borrow().is_some() {
            return Ok(());
        }
        let (account, quotas) = self.account();
        let seat = Seat::take_within(account, quotas.active_turns);
        *self.seat.borrow_mut() = Some(seat.map_err(|max| Refused::Quota { limit: "active_turns", max })?);
        Ok(())
    }

    fn prompt(&self) -> Result<(), Refused> {
        let (account, quotas) = self.account();
        let reserved = Reserved::new(&account, What::Queued, quotas.queued_prompts);
        self.prompts.borrow_mut().push(reserved.map_err(|max| Refused::Quota { limit: "queued_prompts", max })?);
        Ok(())
    }
}

impl Runtime {
    /// Whether a request of the tenant may be answered at all: its share of requests in time. To be asked once for each
    /// request, as soon as it is known whose it is.
    pub fn admit_request(&self, tenant: TenantId) -> Result<(), Error> {
        let shared = self.shared();
        let account = shared.tenants.account(tenant);
        let Some(rate) = rate(&shared.tenants.quotas(&account)) else { return Ok(()) };
        let now = shared.clock.now();
        let mut bucket = account.tally.requests.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(rate, now).map_err(|retry_after| Error::RateLimited { limit: rate.per_second.get(), retry_after })
    }

    /// Every quota there is, how far the tenant has used it up, and what holds for it.
    pub async fn quota_status(&self, tenant: TenantId) -> Result<Vec<QuotaStatus>, Error> {
        let shared = self.shared();
        let account = shared.tenants.account(tenant);
        let quotas = shared.tenants.quotas(&account);
        let stored = self.tenant_figures(tenant).await?;
        let requests = match rate(&quotas) {
            Some(rate) => {
                let bucket = *account.tally.requests.lock().unwrap_or_else(PoisonError::into_inner);
                bucket.used(rate, shared.clock.now())
            }
            None => 0,
        };
        let turns = *account.tally.turns();
        let loaded = shared.registry.loaded_of(tenant) as u64;
        let status = |limit, used, max| QuotaStatus { limit, used, max };
        Ok(vec![
            status("threads", stored.threads, quotas.threads),
            status("loaded_threads", loaded, quotas.loaded_threads),
            status("active_turns", turns, quotas.active_turns),
            status("queued_prompts", stored.queued, quotas.queued_prompts),
            status("subscribers", self.watchers_of(tenant), quotas.subscribers),
            status("requests_per_second", requests, quotas.requests_per_second.map(|rate| rate.get().into())),
            status("stored_bytes", stored.bytes, quotas.stored_bytes),
        ])
    }

    /// Room for so many bytes of a caller's, until they are stored. Refused for a tenant that has, or is about to have, as
    /// much as it may: the last that is let in may pass the bound. Sees to it that what is counted of the tenant is known,
    /// where that has a bound.
    pub(crate) async fn room_to_store(&self, tenant: TenantId, bytes: usize) -> Result<Option<Coming>, Error> {
        let shared = self.shared();
        let account = shared.tenants.account(tenant);
        let quotas = shared.tenants.quotas(&account);
        let counts = quotas.threads.is_some() || quotas.queued_prompts.is_some();
        if counts && account.tally.is_unknown() {
            let (store, account) = (shared.store_handle.clone(), account.clone());
            let figures = move || {
                store.known()?;
                store.store().figures(tenant)
            };
            self.read_of(tenant, move |_| account.tally.learn(figures)).await?;
        }
        let Some(max) = quotas.stored_bytes else { return Ok(None) };
        let read = self.tenant_figures(tenant).await?;
        let mut coming = account.tally.coming();
        // What was stored since it was read is not in `coming` any more.
        let stored = shared.store.known_figures(tenant).unwrap_or(read).bytes;
        if stored + *coming >= max {
            return Err(self.over("stored_bytes", max));
        }
        let bytes = bytes as u64 + STEP_BYTES;
        *coming += bytes;
        drop(coming);
        Ok(Some(Coming { account, bytes }))
    }

    /// Room for one more thread.
    pub(crate) fn room_for_thread(&self, tenant: TenantId) -> Result<Reserved, Error> {
        let tenants = &self.shared().tenants;
        let account = tenants.account(tenant);
        let most = tenants.quotas(&account).threads;
        Reserved::new(&account, What::Threads, most).map_err(|max| self.over("threads", max))
    }

    /// The refusal of what is beyond a quota.
    pub(crate) fn over(&self, limit: &'static str, max: u64) -> Error {
        self.shared().registry.counters.over_quota.fetch_add(1, Relaxed);
        Error::Quota { limit, max }
    }
}

fn rate(quotas: &Quotas) -> Option<Rate> {
    let per_second = quotas.requests_per_second?;
    Some(Rate { per_second, burst: quotas.request_burst.unwrap_or(per_second) })
}

/// The quota of loaded threads.
pub(crate) fn most_loaded(shared: &Shared, tenant: TenantId) -> Option<u64> {
    let account = shared.tenants.account(tenant);
    shared.tenants.quotas(&account).loaded_threads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::Tenants;

    const FOUND: Figures = Figures { threads: 4, queued: 0, bytes: 0 };

    fn account() -> Arc<Account> {
        Tenants::default().account(TenantId::DEFAULT)
    }

    fn make(account: &Arc<Account>) -> bool {
        Reserved::new(account, What::Threads, Some(6)).map(Reserved::keep).is_ok()
    }

    #[test]
    fn who_reads_slowly_does_not_take_back_what_was_counted_meanwhile() {
        let account = account();
        let slow = account.tally.learn(|| {
            account.tally.learn(|| Ok(FOUND)).unwrap();
            assert!(make(&account));
            Ok(FOUND)
        });
        slow.unwrap();
        assert!(make(&account) && !make(&account));
    }

    #[test]
    fn what_goes_while_it_is_first_read_is_not_subtracted_from_what_may_be_without_it() {
        let account = account();
        let going = Underway::new(account.clone());
        account.tally.learn(|| Ok(Figures { threads: 6, ..FOUND })).unwrap();
        account.tally.gone(What::Threads, 1);
        going.end();
        assert!(account.tally.is_unknown() && !make(&account));
        account.tally.learn(|| Ok(Figures { threads: 5, ..FOUND })).unwrap();
        assert!(make(&account) && !make(&account));
    }

    #[test]
    fn what_came_and_ended_while_it_was_first_read_is_read_again() {
        let account = account();
        account.tally.learn(|| Ok(FOUND).inspect(|_| assert!(make(&account)))).unwrap();
        assert!(account.tally.is_unknown());
        account.tally.learn(|| Ok(Figures { threads: 5, ..FOUND })).unwrap();
        assert!(!account.tally.is_unknown());
        assert!(make(&account) && !make(&account));
    }
}
