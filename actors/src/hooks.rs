//! Hooks: every tenant's feed, carried to the sinks that were configured. One task for each hook.
//!
//! ```text
//!  commit ──head──▶ Board ──due──▶ Courier ──page from the store──▶ filter ──batch──▶ Sink
//!                     ▲                │ taken                                          │
//!                     └────────────────┴──── cursor, saved now and then ◀───────────────┘
//! ```
//! A hook reads the log behind its own cursor, never the bus: a commit only tells that there is something to read,
//! and even that may be lost, because it looks by itself now and then. So a sink that is slow, hangs, or is away for
//! a week slows nobody and holds no memory but one page. Order is kept for each tenant; a sink that fails for one of
//! them is tried again for that one after a pause, while the others go on.
//!
//! Invariants: a cursor is saved after what it stands behind was taken, so nothing is lost; not more than [`TWICE`]
//! events of a tenant were taken and are not behind its saved cursor, so not more come again after a crash. A hook is
//! *known* once the default tenant has its cursor, which is written when all others are: whoever has none then is
//! younger than the hook, and its feed is carried from the beginning.
//!
//! Absent on purpose: what a sink is; the last word of a deleted thread, which stands in no feed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Bound,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use raddle_domain::{
    hook::{EventFilter, OnReject, REFUSALS, Since, pause},
    id::{Seq, TenantId},
    ports::{
        Clock, Document, DocumentKind, HookBatch, HookEvent, LogStore, Sink, SinkError, StoreError, StoredEvent, View,
        Write, WriteRefused,
    },
    time::UnixMs,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    batch::Batch,
    stage::Tasks,
    store::AppendError,
    subscription::{TenantCursor, TenantPage, Wanted, tenant_now, tenant_page},
};

/// Events of a tenant that may be delivered twice after a crash.
pub const TWICE: usize = 64;

/// What is read from the log at a time.
const PAGE: usize = 256;
const PAGE_BYTES: usize = 512 * 1024;
/// How long a sink may take for one batch.
pub(crate) const GIVE_UP: Duration = Duration::from_secs(60);
/// The longest that a sink may ask us to wait.
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// When a cursor is saved that stands behind something that was delivered, and one that only passed many things over.
const SAVE_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Appends that may be passed over and be in front of the saved cursor: passing over them again costs next to nothing,
/// and saving costs a commit.
const PASSED_OVER: u64 = 1_000;
/// How long events that nobody wants may gather before they are passed over.
const LINGER: Duration = Duration::from_millis(250);
/// How often a hook looks by itself whether there is something.
const LOOK: Duration = Duration::from_secs(60);

/// A hook as it is configured.
#[derive(Clone)]
pub struct Hook {
    /// Names its cursor: under another name it is another hook.
    pub name: Arc<str>,
    /// What its sink is, for people.
    pub kind: &'static str,
    pub events: EventFilter,
    /// Whose events; `None`: everybody's.
    pub tenants: Option<BTreeSet<TenantId>>,
    pub since: Since,
    pub on_reject: OnReject,
    pub sink: Arc<dyn Sink>,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Hook {
    fn is_for(&self, tenant: TenantId) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.contains(&tenant))
    }

    /// Whether it is one that nobody configured: no name that is has a colon.
    fn is_ours(&self) -> bool {
        self.name.contains(':')
    }

    /// Whether an event is for its sink.
    fn wants(&self, event: &StoredEvent) -> bool {
        self.events.wants(&event.name) && self.sink.looks_at(event)
    }

    /// The name of its cursor among a tenant's documents.
    fn id(&self) -> [u8; 32] {
        Sha256::digest(self.name.as_bytes()).into()
    }
}

/// How a hook is doing, as one tenant may see it. Counts are since the hook was first configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookStatus {
    pub name: Arc<str>,
    pub kind: &'static str,
    pub events: Vec<String>,
    pub on_reject: OnReject,
    /// Behind the last event that was taken or passed over.
    pub cursor: TenantCursor,
    /// Appends of the feed that were not looked at yet.
    pub behind: u64,
    pub delivered: u64,
    /// Events that were given up, and threads of which some could not be read.
    pub skipped: u64,
    /// Since when nothing was taken although there was something.
    pub failing_since: Option<UnixMs>,
    /// What the last failure was. It stays when the failure is over.
    pub last_error: Option<String>,
}

/// A hook's figures over all tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookFigures {
    pub name: Arc<str>,
    pub behind: u64,
    pub delivered: u64,
    pub skipped: u64,
    /// Since this process began.
    pub failures: u64,
    /// Tenants for whom it fails.
    pub failing: u64,
}

/// A cursor as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    hook: String,
    position: u64,
    seq: u64,
    delivered: u64,
    skipped: u64,
}

/// How far a hook has come with one tenant.
#[derive(Debug, Clone, Default)]
struct Progress {
    at: TenantCursor,
    /// The newest append that is known.
    head: u64,
    /// Whether there may be something behind the cursor, whatever `head` says.
    more: bool,
    /// Whether a page behind the cursor is on its way.
    reading: bool,
    delivered: u64,
    skipped: u64,
    /// Events that were taken and are not behind the saved cursor.
    unsaved: usize,
    /// The append at which the saved cursor stands.
    saved: u64,
    /// When the cursor is to be saved, if it moved.
    save_at: Option<Instant>,
    /// Failures in a row.
    failing: u32,
    /// Those of them that were refusals of a batch with this end.
    refused: u32,
    refused_to: TenantCursor,
    failures: u64,
    failing_since: Option<UnixMs>,
    last_error: Option<String>,
    retry_at: Option<Instant>,
}

impl Progress {
    fn is_due(&self, now: Instant) -> bool {
        (self.more || self.head > self.at.position) && self.retry_at.is_none_or(|at| at <= now)
    }

    /// Takes note of an append that nothing is wanted of; whether that was all, so that nobody has to read it.
    fn passed(&mut self, position: u64, last: Seq, now: Instant) -> bool {
        let waits = self.more || self.reading || self.retry_at.is_some() || self.head != self.at.position;
        if waits || position != self.head + 1 {
            return false;
        }
        self.pass(TenantCursor { position, seq: last }, now);
        true
    }

    /// Moves over what nothing was wanted of.
    fn pass(&mut self, at: TenantCursor, now: Instant) {
        self.at = at;
        if at.position - self.saved >= PASSED_OVER {
            self.save_by(now + SAVE_AFTER.1);
        }
    }

    /// Whether everything up to the end of this append was taken, passed over or given up.
    fn has_carried(&self, position: u64) -> bool {
        self.at.position > position || (self.at.position == position && !self.more && !self.reading)
    }

    fn behind(&self) -> u64 {
        self.head.saturating_sub(self.at.position)
    }

    fn save_by(&mut self, at: Instant) {
        self.save_at = Some(self.save_at.map_or(at, |known| known.min(at)));
    }

    fn took(&mut self, at: TenantCursor, events: usize, now: Instant) {
        self.at = at;
        self.save_by(now + SAVE_AFTER.0);
        self.unsaved += events;
        self.recovered();
    }

    /// Takes note of a refusal of a batch with this end. How many there were of it.
    fn refused(&mut self, end: TenantCursor) -> u32 {
        if self.refused_to != end {
            (self.refused, self.refused_to) = (0, end);
        }
        self.refused = self.refused.saturating_add(1);
        self.refused
    }

    fn recovered(&mut self) {
        (self.failing, self.refused, self.failing_since, self.retry_at) = (0, 0, None, None);
    }
}

/// What a hook's task and everybody else know of it.
struct Board {
    hook: Hook,
    tenants: Mutex<BTreeMap<TenantId, Progress>>,
    /// There is something that the hook wants.
    now: Notify,
    /// There is something that it will pass over.
    soon: Notify,
    /// It has come on.
    moved: Notify,
}

impl Board {
    /// Nothing is left half changed under this lock.
    fn tenants(&self) -> MutexGuard<'_, BTreeMap<TenantId, Progress>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of<T>(&self, tenant: TenantId, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(self.tenants().entry(tenant).or_default())
    }

    /// Ready when everything that is known of a tenant now, or of everybody, was taken, passed over or given up.
    async fn carried(&self, of: Option<TenantId>) {
        let is_theirs = |tenant: &TenantId| of.is_none_or(|of| of == *tenant);
        let heads: Vec<_> = {
            let tenants = self.tenants();
            let behind = tenants.iter().filter(|(tenant, known)| is_theirs(tenant) && !known.has_carried(known.head));
            behind.map(|(tenant, known)| (*tenant, known.head)).collect()
        };
        for (tenant, head) in heads {
            loop {
                let mut moved = std::pin::pin!(self.moved.notified());
                moved.as_mut().enable();
                if self.of(tenant, |known| known.has_carried(head)) {
                    break;
                }
                // What would be passed over at leisure is waited for.
                self.now.notify_one();
                moved.await;
            }
        }
    }

    /// The next tenant that is due, after `last`, in turns.
    fn due(&self, last: Option<TenantId>, now: Instant) -> Option<TenantId> {
        let tenants = self.tenants();
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = tenants.range((after, Bound::Unbounded)).chain(tenants.iter());
        behind.filter(|(_, progress)| progress.is_due(now)).map(|(tenant, _)| *tenant).next()
    }

    /// Tenants whose cursor is to be saved.
    fn unsaved(&self, by: Option<Instant>) -> Vec<TenantId> {
        let is_due = |progress: &Progress| progress.save_at.is_some_and(|at| by.is_none_or(|by| at <= by));
        self.tenants().iter().filter(|(_, progress)| is_due(progress)).map(|(tenant, _)| *tenant).collect()
    }

    /// When something is to be done although nothing happens.
    fn alarm(&self) -> Option<Instant> {
        let tenants = self.tenants();
        let retry = |progress: &Progress| progress.retry_at.filter(|_| progress.more || progress.behind() > 0);
        tenants.values().flat_map(|progress| [progress.save_at, retry(progress)]).flatten().min()
    }
}

/// All hooks of a runtime.
#[derive(Default)]
pub(crate) struct Hooks {
    boards: Vec<Arc<Board>>,
    /// Cancelled when nothing new will come: what is there is carried, as far as it goes.
    pub draining: CancellationToken,
    /// Cancelled when nothing more may be delivered.
    pub stop: CancellationToken,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

/// Saves a cursor.
pub(crate) type Save =
    Arc<dyn Fn(Write) -> Pin<Box<dyn Future<Output = Result<(), AppendError>> + Send>> + Send + Sync>;

impl Hooks {
    /// Finds out where each hook stands, and where those begin that are new. Nobody else may write meanwhile.
    pub fn prepare(store: &dyn LogStore, hooks: Vec<Hook>) -> Result<Self, StoreError> {
        if hooks.is_empty() {
            return Ok(Self::default());
        }
        let (mut boards, mut begun) = (Vec::new(), Vec::new());
        {
            let view = store.view()?;
            let mut tenants: BTreeSet<TenantId> = view.feeds()?.into_iter().collect();
            // Where a hook is known by: a tenant's place goes with the tenant.
            tenants.insert(TenantId::SYSTEM);
            let kept: BTreeMap<TenantId, Kept> = tenants
                .iter()
                .map(|tenant| Ok((*tenant, kept(&*view, *tenant)?)))
                .collect::<Result<_, StoreError>>()?;
            for hook in hooks {
                let progress = begin(&*view, &hook, &kept, &mut begun);
                let tenants = Mutex::new(progress?);
                let [now, soon, moved] = std::array::from_fn(|_| Notify::new());
                boards.push(Arc::new(Board { hook, tenants, now, soon, moved }));
            }
        }
        if let Some(refused) = store.commit(&begun)?.into_iter().find_map(Result::err) {
            return Err(StoreError::Unavailable(format!("the cursor of a hook is not stored: {refused}")));
        }
        Ok(Self { boards, ..Self::default() })
    }

    /// Begins to carry.
    pub fn start(&self, tasks: &Tasks, store: &Arc<dyn LogStore>, clock: &Arc<dyn Clock>, save: &Save) {
        let mut running = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for board in &self.boards {
            let (board, store, clock, save) = (board.clone(), store.clone(), clock.clone(), save.clone());
            let courier = Courier { board, store, tasks: tasks.clone(), clock, save, draining: self.draining.clone() };
            running.push(tasks.spawn(courier.run(self.stop.clone())));
        }
    }

    /// Takes note of a commit. Called on the store's thread: it must not wait for anything.
    pub fn committed(&self, batches: &[Arc<Batch>]) {
        for board in &self.boards {
            let (mut concerned, mut wanted) = (false, false);
            let (mut tenants, now) = (board.tenants(), Instant::now());
            for batch in batches.iter().filter(|batch| batch.position > 0 && board.hook.is_for(batch.key.tenant)) {
                let progress = tenants.entry(batch.key.tenant).or_default();
                let wants = batch.chunk.events.iter().any(|event| board.hook.wants(event));
                concerned |= wants || !progress.passed(batch.position, batch.chunk.last(), now);
                progress.head = progress.head.max(batch.position);
                wanted |= wants;
            }
            drop(tenants);
            if wanted {
                board.now.notify_one();
            } else if concerned {
                board.soon.notify_one();
            }
        }
    }

    /// Forgets a tenant of which nothing is left.
    pub fn forget(&self, tenant: TenantId) {
        for board in &self.boards {
            board.tenants().remove(&tenant);
            board.moved.notify_waiters();
        }
    }

    /// Where the hooks begin with a tenant whose feed was brought in up to `now`: what was said elsewhere was carried
    /// there. What carries for us goes on where it stood, which `cursors` say. Gives what is to be saved of it.
    pub fn adopt(&self, tenant: TenantId, now: TenantCursor, cursors: &[Document]) -> Vec<Document> {
        let mut begun = Vec::new();
        for board in self.boards.iter().filter(|board| board.hook.is_for(tenant)) {
            let id = board.hook.id();
            let stood = cursors.iter().find(|cursor| board.hook.is_ours() && cursor.id == id);
            let saved = stood.and_then(|cursor| serde_json::from_slice::<Saved>(&cursor.json).ok());
            let at = saved.map_or(now, |saved| TenantCursor { position: saved.position, seq: saved.seq });
            let progress =
                Progress { at, head: now.position, more: at != now, saved: at.position, ..Progress::default() };
            if let Write::Put { documents, .. } = put(tenant, &board.hook, &progress) {
                begun.extend(documents);
            }
            board.tenants().insert(tenant, progress);
        }
        begun
    }

    /// Ready when a hook has carried what a tenant has now, or everybody.
    pub async fn carried(&self, hook: &str, of: Option<TenantId>) {
        for board in self.boards.iter().filter(|board| *board.hook.name == *hook) {
            board.carried(of).await;
        }
    }

    /// The hooks that carry a tenant's events.
    pub fn status(&self, tenant: TenantId) -> Vec<HookStatus> {
        let status = |board: &Arc<Board>| {
            let progress = board.tenants().get(&tenant).cloned().unwrap_or_default();
            let Hook { name, kind, events, on_reject, .. } = &board.hook;
            HookStatus {
                name: name.clone(),
                kind,
                events: events.patterns().to_vec(),
                on_reject: *on_reject,
                cursor: progress.at,
                behind: progress.behind(),
                delivered: progress.delivered,
                skipped: progress.skipped,
                failing_since: progress.failing_since,
                last_error: progress.last_error,
            }
        };
        let theirs = |board: &&Arc<Board>| board.hook.is_for(tenant) && !board.hook.is_ours();
        self.boards.iter().filter(theirs).map(status).collect()
    }

    pub fn figures(&self) -> Vec<HookFigures> {
        let figures = |board: &Arc<Board>| {
            let tenants = board.tenants();
            let sum = |figure: fn(&Progress) -> u64| tenants.values().map(figure).sum();
            HookFigures {
                name: board.hook.name.clone(),
                behind: sum(Progress::behind),
                delivered: sum(|progress| progress.delivered),
                skipped: sum(|progress| progress.skipped),
                failures: sum(|progress| progress.failures),
                failing: sum(|progress| u64::from(progress.failing_since.is_some())),
            }
        };
        self.boards.iter().map(figures).collect()
    }

    /// Carries what is left until `until`, then saves the cursors.
    pub async fn end(&self, until: Instant, last_words: Duration) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        self.draining.cancel();
        let mut ended = futures_util::future::join_all(tasks);
        if tokio::time::timeout_at(until, &mut ended).await.is_ok() {
            return;
        }
        self.stop.cancel();
        if timeout(last_words, ended).await.is_err() {
            tracing::warn!("the cursors of hooks could not be saved; some events will be delivered again");
        }
    }
}

/// The cursors that a tenant has, by their names; `None` where they cannot be read.
type Kept = Option<BTreeMap<[u8; 32], Saved>>;

fn kept(view: &dyn View, tenant: TenantId) -> Result<Kept, StoreError> {
    let documents = match view.documents(tenant, DocumentKind::HookCursor) {
        Err(StoreError::Corrupt(why)) => {
            tracing::error!(%tenant, %why, "the cursors of hooks are damaged: they begin again with the first event");
            return Ok(None);
        }
        documents => documents?,
    };
    let read = |document: &Document| match serde_json::from_slice(&document.json) {
        Ok(saved) => Some((document.id, saved)),
        Err(why) => {
            tracing::error!(%tenant, %why, "the cursor of a hook is damaged: it begins again with the first event");
            // As one that stands there.
            let [position, seq, delivered, skipped] = [0; 4];
            Some((document.id, Saved { hook: String::new(), position, seq, delivered, skipped }))
        }
    };
    Ok(Some(documents.iter().filter_map(read).collect()))
}

/// Where a hook stands with every tenant; what is new is added to `begun`.
fn begin(
    view: &dyn View,
    hook: &Hook,
    kept: &BTreeMap<TenantId, Kept>,
    begun: &mut Vec<Write>,
) -> Result<BTreeMap<TenantId, Progress>, StoreError> {
    let id = hook.id();
    // By the mark of the installation's own; earlier builds left it with the default tenant.
    let known = [TenantId::SYSTEM, TenantId::DEFAULT].iter().filter_map(|tenant| kept.get(tenant)).any(|cursors| {
        // Where they cannot be read it can have been, and then the others' cursors say where it was.
        cursors.as_ref().is_none_or(|cursors| cursors.contains_key(&id))
    });
    let mut all = BTreeMap::new();
    for (tenant, cursors) in kept {
        let saved = cursors.as_ref().and_then(|cursors| cursors.get(&id));
        let (at, delivered, skipped) = match saved {
            Some(Saved { position, seq, delivered, skipped, .. }) => {
                (TenantCursor { position: *position, seq: *seq }, *delivered, *skipped)
            }
            None => {
                let at = match hook.since {
                    Since::Now if !known => now(view, *tenant)?,
                    Since::Now | Since::Beginning => TenantCursor::default(),
                };
                (at, 0, 0)
            }
        };
        let progress = Progress { at, delivered, skipped, more: true, saved: at.position, ..Progress::default() };
        if saved.is_none() && (!known || *tenant == TenantId::SYSTEM) {
            begun.push(put(*tenant, hook, &progress));
        }
        if *tenant != TenantId::SYSTEM && hook.is_for(*tenant) {
            // A damaged end of a feed is noticed by whoever reads it.
            let head = view.feed_head(*tenant).unwrap_or_default();
            all.insert(*tenant, Progress { head, ..progress });
        }
    }
    Ok(all)
}

/// The newest place; the first one where the end of the feed is damaged, which readers notice.
fn now(view: &dyn View, tenant: TenantId) -> Result<TenantCursor, StoreError> {
    match tenant_now(view, tenant) {
        Err(StoreError::Corrupt(why)) => {
            tracing::error!(%tenant, %why, "a feed is damaged: a new hook begins with its first event");
            Ok(TenantCursor::default())
        }
        now => now,
    }
}

/// The write that saves a cursor.
fn put(tenant: TenantId, hook: &Hook, progress: &Progress) -> Write {
    let Progress { at, delivered, skipped, .. } = *progress;
    let saved = Saved { hook: hook.name.to_string(), position: at.position, seq: at.seq, delivered, skipped };
    let document = Document { kind: DocumentKind::HookCursor, id: hook.id(), json: crate::disk::json(&saved) };
    Write::Put { tenant, documents: vec![document] }
}

/// Where an event stands in its tenant's feed.
const fn place(on: &HookEvent) -> TenantCursor {
    TenantCursor { position: on.position, seq: on.seq }
}

/// The task of one hook.
struct Courier {
    board: Arc<Board>,
    store: Arc<dyn LogStore>,
    tasks: Tasks,
    clock: Arc<dyn Clock>,
    save: Save,
    draining: CancellationToken,
}

impl Courier {
    async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.carry() => {}
        }
        for tenant in self.board.unsaved(None) {
            self.save(tenant).await;
        }
    }

    /// Carries what is due; ends when nothing is while it drains. Dropping it loses nothing: the cursors are on the
    /// board.
    async fn carry(&self) {
        let mut last = None;
        loop {
            while let Some(tenant) = self.board.due(last, Instant::now()) {
                self.page(tenant).await;
                last = Some(tenant);
                self.save_due().await;
            }
            self.save_due().await;
            if self.draining.is_cancelled() {
                return;
            }
            self.wait().await;
        }
    }

    async fn wait(&self) {
        let look = Instant::now() + LOOK;
        let alarm = self.board.alarm().map_or(look, |at| at.min(look));
        let soon = async {
            self.board.soon.notified().await;
            sleep(LINGER).await;
        };
        tokio::select! {
            // What comes all the time is behind what comes now and then.
            biased;
            () = self.draining.cancelled() => {}
            () = sleep_until(alarm) => if alarm == look { self.look().await },
            () = self.board.now.notified() => {}
            () = soon => {}
        }
    }

    /// Reads from a view, off the async threads.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        let read = self.tasks.blocking(move || read(&*store.view()?)).await;
        read.unwrap_or_else(|why| Err(StoreError::Unavailable(why.to_string())))
    }

    /// What a commit may have failed to tell.
    async fn look(&self) {
        let heads = self.read(|view| {
            let head = |tenant| Ok((tenant, view.feed_head(tenant)?));
            view.feeds()?.into_iter().map(head).collect::<Result<Vec<_>, StoreError>>()
        });
        match heads.await {
            Ok(heads) => {
                for (tenant, head) in heads.into_iter().filter(|(tenant, _)| self.board.hook.is_for(*tenant)) {
                    self.board.of(tenant, |progress| progress.head = progress.head.max(head));
                }
            }
            Err(error) => tracing::debug!(%error, "cannot look for events; looking again later"),
        }
    }

    /// Carries one page of a tenant's feed, or as much of it as is taken.
    async fn page(&self, tenant: TenantId) {
        let from = self.board.of(tenant, |progress| {
            progress.reading = true;
            progress.at
        });
        self.carry_page(tenant, from).await;
        self.board.of(tenant, |progress| progress.reading = false);
        self.board.moved.notify_waiters();
    }

    async fn carry_page(&self, tenant: TenantId, from: TenantCursor) {
        let page =
            match self.read(move |view| tenant_page(view, tenant, from, &Wanted::Everyones, PAGE, PAGE_BYTES)).await {
                Ok(page) => page,
                Err(error) => return self.failed(tenant, &error.to_string(), None),
            };
        let TenantPage { events, unavailable, next, more } = page;
        let wanted = events.into_iter().filter(|(_, event)| self.board.hook.wants(event));
        let mut wanted =
            wanted.map(|(cursor, event)| HookEvent { position: cursor.position, seq: cursor.seq, event }).peekable();
        let most = self.board.hook.sink.most().clamp(1, TWICE);
        while wanted.peek().is_some() {
            let (reading, refused_to) = self.board.of(tenant, |progress| (progress.reading, progress.refused_to));
            if !reading {
                // The tenant was forgotten meanwhile.
                return;
            }
            // What was refused is offered as it was: nothing is given up that was refused less often.
            let was_refused = |on: &HookEvent| place(on) <= refused_to;
            let again = wanted.peek().is_some_and(was_refused);
            let next = std::iter::from_fn(|| wanted.next_if(|on| was_refused(on) == again));
            let events: Vec<_> = next.take(most).collect();
            if !self.deliver(tenant, events).await {
                return;
            }
        }
        let now = Instant::now();
        for (thread, why) in &unavailable {
            tracing::error!(hook = %self.board.hook.name, %tenant, %thread, %why, "events cannot be read and are skipped");
        }
        self.board.of(tenant, |progress| {
            if next != progress.at {
                progress.pass(next, now);
            }
            // The append that the page ends with may go on, and another one may have come since.
            progress.more = more;
            progress.head = progress.head.max(next.position);
            progress.skipped += unavailable.len() as u64;
            if let Some((thread, why)) = unavailable.last() {
                progress.last_error = Some(format!("events of {thread} cannot be read: {why}"));
            }
            progress.recovered();
        });
    }

    /// Whether the events were taken, or are given up.
    async fn deliver(&self, tenant: TenantId, events: Vec<HookEvent>) -> bool {
        let (count, Some(last)) = (events.len(), events.last()) else { return true };
        let behind = place(last);
        if self.board.of(tenant, |progress| progress.unsaved) + count > TWICE && !self.save(tenant).await {
            self.failed(tenant, "how far it has come cannot be saved", None);
            return false;
        }
        let batch = HookBatch { hook: self.board.hook.name.clone(), tenant, at: self.clock.now(), events };
        let delivery = AssertUnwindSafe(self.board.hook.sink.deliver(batch)).catch_unwind();
        let unavailable = |why: &str| SinkError::Unavailable { why: why.to_owned(), retry_after: None };
        let taken = match timeout(GIVE_UP, delivery).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(_)) => Err(unavailable("the sink panicked")),
            Err(_) => Err(unavailable("the sink did not take it in time")),
        };
        let now = Instant::now();
        match taken {
            Ok(()) => {
                self.board.of(tenant, |progress| {
                    progress.took(behind, count, now);
                    progress.delivered += count as u64;
                });
                true
            }
            Err(SinkError::Unavailable { why, retry_after }) => {
                self.failed(tenant, &why, retry_after);
                false
            }
            Err(SinkError::Rejected(why)) => {
                let refusals = self.board.of(tenant, |progress| progress.refused(behind));
                self.failed(tenant, &why, None);
                if self.board.hook.on_reject == OnReject::Retry || refusals < REFUSALS {
                    return false;
                }
                let (position, seq) = (behind.position, behind.seq);
                tracing::error!(hook = %self.board.hook.name, %tenant, position, seq, count, %why, "events are given up");
                self.board.of(tenant, |progress| {
                    progress.took(behind, count, now);
                    progress.skipped += count as u64;
                });
                true
            }
        }
    }

    fn failed(&self, tenant: TenantId, why: &str, retry_after: Option<Duration>) {
        let (at, now) = (self.clock.now(), Instant::now());
        let (failures, wait) = self.board.of(tenant, |progress| {
            progress.failing = progress.failing.saturating_add(1);
            progress.failures += 1;
            progress.failing_since.get_or_insert(at);
            progress.last_error = Some(why.to_owned());
            // What was read of the page is read again.
            progress.more = true;
            let wait = pause(progress.failing).max(retry_after.unwrap_or_default().min(LONGEST));
            progress.retry_at = Some(now + wait);
            (progress.failing, wait)
        });
        let hook = &self.board.hook;
        if hook.is_ours() && self.draining.is_cancelled() {
            // Whoever would take them has gone already. The next process carries them.
            tracing::debug!(hook = %hook.name, %tenant, why, "events are left to the next process");
        } else {
            tracing::warn!(hook = %hook.name, %tenant, failures, ?wait, why, "a hook's events are not taken");
        }
    }

    async fn save_due(&self) {
        for tenant in self.board.unsaved(Some(Instant::now())) {
            self.save(tenant).await;
        }
    }

    /// Saves how far it has come; whether it is saved.
    async fn save(&self, tenant: TenantId) -> bool {
        let (write, unsaved, position) = self.board.of(tenant, |progress| {
            progress.save_at = None;
            (put(tenant, &self.board.hook, progress), progress.unsaved, progress.at.position)
        });
        match (self.save)(write).await {
            Ok(()) => {
                self.board.of(tenant, |progress| {
                    progress.unsaved -= unsaved;
                    progress.saved = position;
                });
                true
            }
            Err(AppendError::Refused(WriteRefused::Closed(_))) => {
                self.board.tenants().remove(&tenant);
                false
            }
            Err(error) => {
                let again = Instant::now() + SAVE_AFTER.0;
                self.board.of(tenant, |progress| progress.save_at = Some(again));
                tracing::debug!(hook = %self.board.hook.name, %tenant, %error, "how far a hook has come is not saved");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
