//! Who holds model calls to budgets: what each tenant spent, in memory, and the tab of each call.
//!
//! A tenant's [`Book`] is read from what its threads spent, in one view, when a budget of it is first asked about, and
//! kept up by every commit from then on. A commit that comes while it is read is known by its place in the tenant's
//! feed to be in the view, or behind it: so nothing is counted twice, and nothing is left out. A store that failed may
//! have stored what nobody was told of: then every book is read again.
//!
//! What a call has reserved is given back in the moment in which what it came to is counted: with the commit that
//! ends the call. Where nothing is counted it is given back when the call is let go.
//!
//! Which budgets hold is read from the tenant's record at every reservation, so one that is lowered stops a running
//! call at its next. A tenant without budgets has no book, and pays for one look at its record per call.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use dashmap::DashMap;
#[cfg(feature = "planted")]
use raddle_domain::planted;
use raddle_domain::{
    budget::{Amount, Ask, Book, BudgetState, BudgetStatus, Level, Meter, Stopped, grant},
    command::{Metered, Refused},
    event::Reserved,
    id::{TenantId, ThreadId, ThreadKey},
    ports::{Act, ActStep, Clock, Fragment, LogStore, ModelError, ModelErrorKind, Spent, StoreError, View},
    price::Price,
    record::Usage,
    tenant::{Budgets, TenantStatus},
    time::UnixMs,
};

use crate::{
    batch::Batch,
    handle::{Error, Runtime},
    receipts::Idempotency,
    stage::Tasks,
    system::Shared,
    tenants::Account,
    thread::ThreadMachine,
};

/// Days of threads read at a time.
const PAGE: usize = 1_000;

/// The books of all tenants that have budgets.
#[derive(Default)]
pub(crate) struct Books {
    ledgers: DashMap<TenantId, Arc<Ledger>>,
    calls: AtomicU64,
}

/// The book of one tenant, and what was committed since it is being read.
struct Ledger {
    kept: Mutex<Kept>,
    /// Held while it is read.
    reading: tokio::sync::Mutex<()>,
}

struct Kept {
    book: Book,
    state: State,
}

enum State {
    /// Its sums are those of the store.
    True,
    /// Nobody knows what its sums are.
    Stale,
    /// They are being read; this was spent meanwhile, with the commits' places in the feed.
    Reading(Vec<(u64, u32, Amount)>),
}

impl Ledger {
    fn new(now: UnixMs) -> Self {
        let kept = Kept { book: Book::new(u32::MAX, now), state: State::Stale };
        Self { kept: Mutex::new(kept), reading: tokio::sync::Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing below can leave it half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn committed(&self, position: u64, thread: ThreadId, spent: &[Spent]) {
        let mut kept = self.kept();
        let Kept { book, state } = &mut *kept;
        book.ended(thread);
        for Spent { day, totals, .. } in spent {
            let tokens = totals.input_tokens.saturating_add(totals.output_tokens);
            let amount = Amount { tokens, pico_usd: totals.pico_usd };
            match state {
                State::True => book.spend(*day, amount),
                State::Reading(missed) => missed.push((position, *day, amount)),
                State::Stale => {}
            }
        }
    }

    /// Asks the book, if it is good for `budgets` at `now`.
    fn ask<T>(&self, budgets: &Budgets, now: UnixMs, ask: impl FnOnce(&mut Book) -> T) -> Option<T> {
        let mut kept = self.kept();
        let Kept { book, state } = &mut *kept;
        (matches!(state, State::True) && book.reaches(budgets, now)).then(|| ask(book))
    }

    /// Takes over what was read; whatever failed meanwhile makes it worth nothing.
    fn read(&self, mut book: Book, head: u64) {
        let mut kept = self.kept();
        let State::Reading(missed) = std::mem::replace(&mut kept.state, State::Stale) else { return };
        for (_, day, amount) in missed.into_iter().filter(|(position, ..)| *position > head) {
            book.spend(day, amount);
        }
        let before = std::mem::replace(&mut kept.book, Book::new(u32::MAX, UnixMs(0)));
        *kept = Kept { book: book.continuing(before), state: State::True };
    }
}

/// What was spent from the day `since` on, and how far the tenant's feed is.
fn sums(view: &dyn View, tenant: TenantId, since: u32, now: UnixMs) -> Result<(Book, u64), StoreError> {
    let mut book = Book::new(since, now);
    let head = view.feed_head(tenant)?;
    let mut after = None;
    loop {
        let page = view.spent(tenant, since, u32::MAX, after, PAGE)?;
        after = page.last().map(|last| (last.day, last.thread));
        for Spent { day, totals, .. } in page.iter().flat_map(|by| &by.rows) {
            let tokens = totals.input_tokens.saturating_add(totals.output_tokens);
            book.spend(*day, Amount { tokens, pico_usd: totals.pico_usd });
        }
        if page.len() < PAGE {
            return Ok((book, head));
        }
    }
}

impl Books {
    /// Counts what was committed. Before anybody is told of it: who starts the next call of a thread must not find
    /// the end of the one before still to come.
    pub fn committed(&self, batches: &[Arc<Batch>]) {
        for batch in batches.iter().filter(|batch| !batch.spent.is_empty()) {
            let ledger = self.ledgers.get(&batch.key.tenant).map(|ledger| ledger.clone());
            if let Some(ledger) = ledger {
                ledger.committed(batch.position, batch.key.thread, &batch.spent);
            }
        }
    }

    /// Something may be stored of which nobody was told.
    pub fn doubt(&self) {
        for ledger in &self.ledgers {
            ledger.kept().state = State::Stale;
        }
    }

    /// Asks the book of a tenant, which is read if it has to be. Nothing where no budget bounds anything.
    async fn ask<T>(
        &self,
        place: &Counter,
        account: &Account,
        mut ask: impl FnMut(&mut Book, &Budgets) -> T,
    ) -> Result<Option<T>, StoreError> {
        let tenant = account.id;
        loop {
            let budgets = account.tenant().budgets;
            let now = place.clock.now();
            let Some(since) = budgets.since(now) else { return Ok(None) };
            let known = self.ledgers.get(&tenant).map(|ledger| ledger.clone());
            let new = || self.ledgers.entry(tenant).or_insert_with(|| Arc::new(Ledger::new(now))).clone();
            let ledger = known.unwrap_or_else(new);
            if let Some(answer) = ledger.ask(&budgets, now, |book| ask(book, &budgets)) {
                return Ok(Some(answer));
            }
            let _reading = ledger.reading.lock().await;
            // Whoever had to wait may find it read.
            if let Some(answer) = ledger.ask(&budgets, now, |book| ask(book, &budgets)) {
                return Ok(Some(answer));
            }
            ledger.kept().state = State::Reading(Vec::new());
            let store = place.store.clone();
            let read = move || sums(&*store.view()?, tenant, since, now);
            let read = place.tasks.blocking(read).await;
            match read.map_err(|why| StoreError::Unavailable(why.to_string())).flatten() {
                Ok((book, head)) => ledger.read(book, head),
                Err(error) => {
                    ledger.kept().state = State::Stale;
                    return Err(error);
                }
            }
        }
    }
}

/// What it takes to read a book.
#[derive(Clone)]
struct Counter {
    store: Arc<dyn LogStore>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
}

impl Counter {
    fn of(shared: &Shared) -> Self {
        Self { store: shared.store.clone(), clock: shared.clock.clone(), tasks: shared.tasks.clone() }
    }
}

// ---- one call ------------------------------------------------------------------------------------

/// The account of one model call, for whoever makes it and for its thread.
pub(crate) struct Tab {
    thread: ThreadId,
    account: Arc<Account>,
    books: Arc<Books>,
    counter: Counter,
    call: u64,
    chunk: u64,
    price: Option<Price>,
    /// Whether any budget holds it.
    held: AtomicBool,
    /// What it has taken, by the estimate; nothing before it is made.
    input: AtomicU64,
    output: AtomicU64,
    /// What the thread was told of that.
    told: Mutex<Reserved>,
    /// The budgets of the thread and the turn.
    levels: Mutex<Vec<Level>>,
    news: Mutex<(Vec<BudgetState>, Option<BudgetState>)>,
    /// Set when the thread has let the call go: nothing is reserved for it from then on.
    over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tab {
    pub fn open(shared: &Shared, key: ThreadKey, price: Option<Price>, levels: Vec<Level>) -> Arc<Self> {
        Arc::new(Self {
            thread: key.thread,
            account: shared.tenants.account(key.tenant),
            books: shared.books.clone(),
            counter: Counter::of(shared),
            call: shared.books.calls.fetch_add(1, SeqCst),
            chunk: shared.config.limits.reserve_output_tokens.into(),
            price,
            held: AtomicBool::new(false),
            input: AtomicU64::new(0),
            output: AtomicU64::new(0),
            told: Mutex::new(Reserved { input_tokens: 0, output_tokens: 0 }),
            levels: Mutex::new(levels),
            news: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// The budgets of the thread and the turn, as they are now.
    pub fn bound(&self, levels: Vec<Level>) {
        *lock(&self.levels) = levels;
    }

    /// The thread lets the call go: what is reserved for it is given back.
    pub fn close(&self) {
        self.over.store(true, SeqCst);
        self.give_back();
    }

    fn give_back(&self) {
        if let Some(ledger) = self.books.ledgers.get(&self.account.id) {
            ledger.kept().book.release(self.thread, self.call);
        }
    }

    /// What is known of the call by now, if it is held to a budget. Each warning is told once. The budget that ends a
    /// call is told where it `ends`: somebody may ask when that is known, and the end is not.
    pub fn tell(&self, exactly: bool, ends: bool) -> Option<Metered> {
        if !self.held.load(SeqCst) {
            return None;
        }
        let reserved = Reserved { input_tokens: self.input.load(SeqCst), output_tokens: self.output.load(SeqCst) };
        *lock(&self.told) = reserved;
        let (warnings, exceeded) = &mut *lock(&self.news);
        let exceeded = if ends { exceeded.take() } else { None };
        let warnings = std::mem::take(warnings);
        Some(Metered { reserved, exactly, warnings, exceeded })
    }

    /// Whether the thread does not know yet what the call has taken.
    pub fn has_news(&self) -> bool {
        self.held.load(SeqCst) && {
            let told = *lock(&self.told);
            (told.input_tokens, told.output_tokens) != (self.input.load(SeqCst), self.output.load(SeqCst))
        }
    }

    /// Reserves what a call takes before it is made, which tells the model so many bytes. Not made, it fails.
    pub async fn begin(self: &Arc<Self>, bytes: u64, max_tokens: Option<u32>) -> Result<Metering, ModelError> {
        let rates = self.price.as_ref().map(Into::into);
        let mut meter = Meter::new(bytes, self.chunk, max_tokens, rates);
        self.reserve(&mut meter).await?;
        self.input.store(meter.input(), SeqCst);
        Ok(Metering { tab: self.clone(), meter })
    }

    async fn reserve(&self, meter: &mut Meter) -> Result<(), ModelError> {
        let tenant = self.account.tenant();
        if tenant.status != TenantStatus::Active {
            let message = "the tenant is suspended: no model is called for it".to_owned();
            return Err(ModelError { kind: ModelErrorKind::Suspended, message, retry_after: None });
        }
        let levels = lock(&self.levels).clone();
        let ask = meter.ask();
        let bounded = tenant.budgets.bounds();
        if levels.is_empty() && !bounded {
            meter.granted(ask.most);
            return Ok(());
        }
        self.held.store(true, SeqCst);
        #[cfg(feature = "planted")]
        if planted::is(planted::Fault::Overspend) {
            meter.granted(ask.most);
            return Ok(());
        }
        let mut granted = grant(levels, ask).map_err(|stopped| self.stopped(stopped))?;
        if bounded {
            let ask = Ask { most: granted, ..ask };
            let hold = |book: &mut Book, budgets: &Budgets| {
                let held = book.hold(self.thread, self.call, budgets, ask);
                (held, book.warnings(budgets))
            };
            let held = self.books.ask(&self.counter, &self.account, hold).await.map_err(|why| unread(&why))?;
            if let Some((held, warnings)) = held {
                lock(&self.news).0.extend(warnings);
                granted = held.map_err(|stopped| self.stopped(stopped))?;
            }
            if self.over.load(SeqCst) {
                self.give_back();
            }
        }
        meter.granted(granted);
        Ok(())
    }

    fn stopped(&self, stopped: Stopped) -> ModelError {
        if let Stopped::Spent(state) = stopped {
            lock(&self.news).1 = Some(state);
        }
        ModelError { kind: ModelErrorKind::Budget, message: stopped.to_string(), retry_after: None }
    }
}

/// What is spent is not known: the call may be made when it is.
fn unread(why: &StoreError) -> ModelError {
    let kind = match why {
        StoreError::Unavailable(_) | StoreError::Full => ModelErrorKind::Unavailable,
        StoreError::Corrupt(_) => ModelErrorKind::Engine,
    };
    ModelError { kind, message: format!("what the tenant has spent cannot be read: {why}"), retry_after: None }
}

/// A call that is being made.
pub(crate) struct Metering {
    tab: Arc<Tab>,
    meter: Meter,
}

impl Metering {
    /// Takes over what the provider says before the end: nothing of it is an estimate, if the call does not get there.
    pub fn reported(&self, usage: &Usage) {
        if usage.input_tokens > 0 {
            self.tab.input.store(usage.input_tokens, SeqCst);
        }
        self.tab.output.fetch_max(usage.output_tokens, SeqCst);
    }

    /// Counts what has come, and reserves for what may come. Where nothing more fits the call is to end here.
    pub async fn take(&mut self, bytes: usize) -> Result<(), ModelError> {
        if bytes == 0 {
            return Ok(());
        }
        let more = self.meter.counts(bytes);
        self.tab.output.fetch_max(self.meter.output(), SeqCst);
        if more { self.tab.reserve(&mut self.meter).await } else { Ok(()) }
    }
}

/// The bytes of a fragment that its provider charges for, about.
pub(crate) fn charged(fragment: &Fragment) -> usize {
    match fragment {
        Fragment::Text(text) | Fragment::Reasoning(text) => text.len(),
        Fragment::ToolCall { name, arguments, .. } => name.as_ref().map_or(0, String::len) + arguments.len(),
        Fragment::Act(Act { step: ActStep::Said(text) | ActStep::Ended { output: text, .. }, .. }) => text.len(),
        Fragment::Act(_) | Fragment::Usage(_) | Fragment::Finish(_) => 0,
    }
}

// ---- what hosts ask ------------------------------------------------------------------------------

impl Runtime {
    /// How the tenant's budgets stand: each that it has, in each unit.
    pub async fn budget_status(&self, tenant: TenantId) -> Result<Vec<BudgetStatus>, Error> {
        let shared = self.shared();
        let account = shared.tenants.account(tenant);
        let status = shared.books.ask(&Counter::of(shared), &account, |book, budgets| book.status(budgets)).await?;
        Ok(status.unwrap_or_default())
    }

    /// Refuses what would call a model for a tenant of whose budget nothing is left. What was accepted before stays so.
    pub(crate) async fn affordable(&self, tenant: TenantId, call: Option<Idempotency>) -> Result<(), Error> {
        let shared = self.shared();
        let account = shared.tenants.account(tenant);
        let counter = Counter::of(shared);
        let exhausted = shared.books.ask(&counter, &account, |book, budgets| book.exhausted(budgets)).await?;
        match exhausted.flatten() {
            Some(state) if self.recall::<ThreadMachine>(tenant, call).await?.is_none() => {
                Err(Refused::BudgetExceeded(Box::new(state)).into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::{budget::Scope, tenant::Budget};

    use super::*;
    use crate::{clock::SystemClock, store::memory::MemoryStore, tenants::Tenants};

    fn spent_up() -> Level {
        let spent = Amount { tokens: 10, ..Amount::default() };
        let budget = Budget { tokens: Some(10), ..Budget::default() };
        Level { scope: Scope::Thread, window: None, budget, spent, resets_at: None }
    }

    #[tokio::test]
    async fn a_budget_that_ends_a_call_is_told_with_its_end() {
        let store: Arc<dyn LogStore> = Arc::<MemoryStore>::default();
        let tasks = Tasks::Pool(tokio::runtime::Handle::current());
        let tab = Arc::new(Tab {
            thread: ThreadId::from_bytes([1; 16]),
            account: Tenants::default().account(TenantId::DEFAULT),
            books: Arc::default(),
            counter: Counter { store, clock: Arc::new(SystemClock), tasks },
            call: 1,
            chunk: 16,
            price: None,
            held: AtomicBool::new(false),
            input: AtomicU64::new(0),
            output: AtomicU64::new(0),
            told: Mutex::new(Reserved { input_tokens: 0, output_tokens: 0 }),
            levels: Mutex::new(vec![spent_up()]),
            news: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let Err(stopped) = tab.begin(100, None).await else { panic!("nothing is left") };
        assert_eq!(stopped.kind, ModelErrorKind::Budget);
        // The thread takes what was said before, and has not heard of the end.
        assert_eq!(tab.tell(false, false).and_then(|metered| metered.exceeded), None);
        let exceeded = tab.tell(true, true).and_then(|metered| metered.exceeded);
        assert_eq!(exceeded.map(|state| (state.scope, state.spent)), Some((Scope::Thread, 10)));
    }
}
