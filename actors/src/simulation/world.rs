//! Everything outside of the process: time, names, what goes wrong, and a record of what happens.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use raddle_domain::{
    id::{TenantId, ThreadKey, TurnId},
    ports::{Append, Clock, HookBatch, Ids, Invocation, Write, WriteRefused},
    tenant::Quotas,
    time::UnixMs,
};
use sha2::{Digest, Sha256};
use tokio::{sync::Notify, time::Instant};
use uuid::{Builder, Uuid};

use super::{
    hooks::Heard,
    numbers::Numbers,
    plan::{Answer, Fault, Plan},
    witness::{Holds, Violation, Witness},
};

/// When everything begins.
const BEGINNING: UnixMs = UnixMs(1_795_000_000_000);

/// What becomes of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Dies { down_ms: u64 },
    Stops { deadline_ms: u64, down_ms: u64 },
}

pub(crate) struct World {
    began: Instant,
    /// By how many milliseconds somebody has set the clock.
    set_by: AtomicI64,
    inner: Mutex<Inner>,
    pub fate: Notify,
    pub broken: Notify,
}

struct Inner {
    trace: Trace,
    ids: Numbers,
    witness: Witness,
    /// Those that have not come yet.
    faults: Vec<Fault>,
    commits: u32,
    /// Reads that are to fail.
    reads: u32,
    fate: Option<Fate>,
    /// Writes of processes that died, which come to the disk late.
    late: Vec<Append>,
    tries: BTreeMap<(TurnId, usize), u32>,
    /// Whether more may be stored than the process knows.
    in_doubt: bool,
    broken: Option<Violation>,
}

/// What happened, as a digest, and as lines if somebody wants to read them.
struct Trace {
    digest: Sha256,
    lines: Option<Vec<String>>,
    line: String,
    count: u64,
}

impl World {
    /// A world in which nothing has happened. `told`: whether there will be a story.
    pub fn new(plan: &Plan, told: bool) -> Arc<Self> {
        let trace = Trace { digest: Sha256::new(), lines: told.then(Vec::new), line: String::new(), count: 0 };
        Arc::new(Self {
            began: Instant::now(),
            set_by: AtomicI64::new(0),
            inner: Mutex::new(Inner {
                trace,
                ids: Numbers::new(plan.seed, 1),
                witness: Witness::new(plan),
                faults: plan.faults.clone(),
                commits: 0,
                reads: 0,
                fate: None,
                late: Vec::new(),
                tries: BTreeMap::new(),
                in_doubt: false,
                broken: None,
            }),
            fate: Notify::new(),
            broken: Notify::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn set_clock(&self, by_ms: i64) {
        self.set_by.fetch_add(by_ms, Relaxed);
    }

    // ---- the record ------------------------------------------------------------------------------

    /// Something happened.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let at = self.elapsed();
        self.inner().trace.note(at, what);
    }

    /// What happened, so far: its digest, how much it was, and its lines.
    pub fn told(&self) -> (String, u64, Vec<String>) {
        let mut inner = self.inner();
        let digest = inner.trace.digest.clone().finalize();
        let digest = digest.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        (digest, inner.trace.count, inner.trace.lines.take().unwrap_or_default())
    }

    // ---- what must hold --------------------------------------------------------------------------

    /// Asks whoever knows everything; what must not be is the end of it.
    pub fn witness<T>(&self, ask: impl FnOnce(&mut Witness) -> Holds<T>) -> Option<T> {
        let asked = ask(&mut self.inner().witness);
        asked.map_err(|violation| self.violated(violation)).ok()
    }

    pub fn know<T>(&self, ask: impl FnOnce(&Witness) -> T) -> T {
        ask(&self.inner().witness)
    }

    pub fn violated(&self, violation: Violation) {
        self.note(format_args!("VIOLATED  {violation}"));
        self.inner().broken.get_or_insert(violation);
        self.broken.notify_one();
    }

    pub fn is_broken(&self) -> Option<Violation> {
        self.inner().broken.clone()
    }

    // ---- what goes wrong -------------------------------------------------------------------------

    /// The next commit: its number, and what goes wrong with it.
    pub fn commits(&self) -> (u32, Option<Fault>) {
        let mut inner = self.inner();
        inner.commits += 1;
        let number = inner.commits;
        let at = inner.faults.iter().position(|fault| match fault {
            Fault::Fails { commit, .. }
            | Fault::Full { commit, .. }
            | Fault::Stalls { commit, .. }
            | Fault::Dies { commit, .. } => *commit == number,
            _ => false,
        });
        let fault = at.map(|at| inner.faults.remove(at));
        if fault.is_some() {
            inner.witness.shakes();
        }
        (number, fault)
    }

    pub fn commits_so_far(&self) -> u32 {
        self.inner().commits
    }

    /// Nothing goes wrong from now on.
    pub fn heal(&self) {
        let mut inner = self.inner();
        inner.faults.clear();
        inner.reads = 0;
    }

    pub fn fail_reads(&self, count: u32) {
        self.inner().reads += count;
    }

    /// Whether a read fails.
    pub fn read_fails(&self) -> bool {
        let mut inner = self.inner();
        let fails = inner.reads > 0;
        if fails {
            inner.witness.shakes();
        }
        inner.reads = inner.reads.saturating_sub(1);
        fails
    }

    /// Decides what becomes of the process that is there. Who is to die does, whatever else was decided.
    pub fn decide(&self, fate: Fate) {
        self.note(format_args!("fate      {fate:?}"));
        let mut inner = self.inner();
        if !matches!(inner.fate, Some(Fate::Dies { .. })) {
            inner.fate = Some(fate);
        }
        drop(inner);
        self.fate.notify_one();
    }

    /// What becomes of the process that is there.
    pub fn take_fate(&self) -> Option<Fate> {
        self.inner().fate.take()
    }

    pub fn comes_late(&self, writes: &[Write]) {
        let appends = writes.iter().filter_map(|write| match write {
            Write::Append(append) if append.fork.is_none() && append.expected > 0 => Some(append.clone()),
            _ => None,
        });
        self.inner().late.extend(appends);
    }

    /// Late writes to logs that a younger process has written to.
    pub fn arrives_now(&self) -> Vec<Append> {
        let mut inner = self.inner();
        if inner.late.is_empty() {
            return Vec::new();
        }
        let Inner { late, witness, .. } = &mut *inner;
        let is_owned = |append: &mut Append| {
            witness.log(append.key).is_some_and(|log| log.gone || log.fence > append.row.head.fence)
        };
        late.extract_if(.., is_owned).collect()
    }

    // ---- what is done ----------------------------------------------------------------------------

    pub fn committed(&self, number: u32, writes: &[Write], results: &[Result<u64, WriteRefused>]) {
        for (write, result) in writes.iter().zip(results) {
            self.trace_write(number, write, result);
            self.witness(|witness| witness.committed(write, result));
        }
    }

    fn trace_write(&self, number: u32, write: &Write, result: &Result<u64, WriteRefused>) {
        let at = self.elapsed();
        let mut inner = self.inner();
        let Inner { trace, witness, .. } = &mut *inner;
        let refused = match result {
            Ok(_) => String::new(),
            Err(why) => format!(", refused: {why}"),
        };
        match write {
            Write::Append(append) => {
                let known = witness.log(append.key).map_or(witness.logs().count(), |log| log.number);
                let names: Vec<&str> = append.chunk.events.iter().map(|event| &*event.name).collect();
                let (first, last, names) = (append.chunk.first, append.chunk.last(), names.join(" "));
                trace.note(at, format_args!("commit {number:<3} log {known} {first}-{last}: {names}{refused}"));
                append.chunk.events.iter().for_each(|event| trace.digest.update(&event.json));
            }
            Write::Erase { key, .. } => {
                trace.note(at, format_args!("commit {number:<3} {} is erased{refused}", witness.name(*key)));
            }
            Write::Put { tenant, documents } => {
                trace.note(at, format_args!("commit {number:<3} {} documents of {tenant}{refused}", documents.len()));
                documents.iter().for_each(|document| trace.digest.update(&document.json));
            }
            other => trace.note(at, format_args!("commit {number:<3} of {}{refused}", other.tenant())),
        }
    }

    /// A process begins.
    pub fn starts(&self, process: u32) {
        self.inner().witness.starts(process);
    }

    /// A model is called, and told so many tokens.
    pub fn call_begins(&self, key: ThreadKey, input: u64) {
        // What a commit stored that failed nobody counts before the store is open again.
        if !self.inner().in_doubt {
            self.witness(|witness| witness.call_begins(key, input));
        }
    }

    pub fn allows(&self, tenant: TenantId, tokens: u64) {
        self.inner().witness.allows(tenant, tokens);
    }

    pub fn grants(&self, tenant: TenantId, quotas: Quotas) {
        self.inner().witness.bounds.grants(tenant, quotas);
    }

    /// Everybody has as much as he wants.
    pub fn has_room(&self) {
        self.inner().witness.has_room = true;
    }

    /// A watcher of a tenant, or of a thread of his, has come.
    pub fn opened(&self, tenant: TenantId) {
        self.witness(|witness| witness.opened(tenant));
    }

    /// He has gone.
    pub fn closed(&self, tenant: TenantId) {
        self.inner().witness.closed(tenant);
    }

    /// A commit failed and was stored, or the store is open again.
    pub fn doubt(&self, in_doubt: bool) {
        let mut inner = self.inner();
        inner.in_doubt = in_doubt;
        if in_doubt {
            inner.witness.doubts();
        }
    }

    pub fn tries(&self, turn: TurnId, round: usize) -> u32 {
        let mut inner = self.inner();
        let tries = inner.tries.entry((turn, round)).or_default();
        *tries += 1;
        let tries = *tries;
        drop(inner);
        self.note(format_args!("model     round {round}, try {tries}"));
        tries
    }

    pub fn tool_begins(&self, invocation: &Invocation) {
        let Invocation { tool, attempt, arguments, .. } = invocation;
        self.note(format_args!("tool      {tool} {arguments} begins, attempt {attempt}"));
        self.witness(|witness| witness.tool_begins(invocation));
    }

    pub fn tool_acts(&self, invocation: &Invocation) {
        let Invocation { tool, attempt, .. } = invocation;
        self.note(format_args!("tool      {tool} acts, attempt {attempt}"));
        self.witness(|witness| witness.tool_acts(invocation));
    }

    /// A hook offers its sink a batch. What that says to it.
    pub fn offered(&self, nth: usize, batch: &HookBatch) -> Answer {
        let answer = self.witness(|witness| witness.offered(nth, batch)).unwrap_or(Answer::Gone);
        let HookBatch { hook, tenant, events, .. } = batch;
        let places = events.iter().map(|on| format!("{}/{}", on.position, on.seq)).collect::<Vec<_>>().join(" ");
        self.note(format_args!("hook      {hook} of {tenant} offers {places}: {answer:?}"));
        answer
    }

    pub fn took(&self, nth: usize, batch: &HookBatch) {
        self.note(format_args!("hook      {} of {} is rid of {}", batch.hook, batch.tenant, batch.events.len()));
        self.witness(|witness| witness.took(nth, batch));
    }

    /// A hook's sink has nothing in its hands any more.
    pub fn lays_down(&self, nth: usize, after: Duration) {
        self.witness(|witness| witness.hooks[nth].lays_down(after));
    }

    /// Sinks where nobody was take what comes.
    pub fn mend_sinks(&self) {
        self.inner().witness.hooks.iter_mut().for_each(Heard::mend);
    }

    pub fn has_acted(&self, invocation: &Invocation) -> bool {
        let acted = self.know(|witness| witness.has_acted(invocation.operation));
        self.note(format_args!("tool      {} is asked whether it acted: {acted}", invocation.tool));
        acted
    }
}

impl Trace {
    fn note(&mut self, at: Duration, what: fmt::Arguments<'_>) {
        self.line.clear();
        // Text takes whatever is written.
        let _ = write!(self.line, "{:>9.3} s  {what}", at.as_secs_f64());
        self.digest.update(&self.line);
        self.count += 1;
        if let Some(lines) = &mut self.lines {
            lines.push(self.line.clone());
        }
    }
}

impl Clock for World {
    fn now(&self) -> UnixMs {
        let now = BEGINNING.0 + self.elapsed().as_millis() as u64;
        UnixMs(now.saturating_add_signed(self.set_by.load(Relaxed)))
    }
}

impl Ids for World {
    fn mint(&self) -> Uuid {
        let now = self.now().0;
        let ids = &mut self.inner().ids;
        let mut random = [0; 10];
        random[..8].copy_from_slice(&ids.next().to_be_bytes());
        random[8..].copy_from_slice(&ids.next().to_be_bytes()[..2]);
        Builder::from_unix_timestamp_millis(now, &random).into_uuid()
    }
}
