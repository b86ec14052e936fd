//! What outlives a process, and the store through which a process uses it: one that fails as the plan says.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use raddle_domain::{
    id::TenantId,
    ports::{Figures, LogStore, StoreError, View, Write, WriteRefused},
    time::UnixMs,
};
use tokio::time::Instant;

use super::{
    plan::{Death, Fault, Kept, Leaves},
    scheduler::Scheduler,
    witness::{Violation, WRITER},
    world::{Fate, World},
};
use crate::store::{
    backend::MemoryMedium,
    memory::MemoryStore,
    redb::{OpenError, RedbStore},
};

/// What is stored.
pub(crate) struct Disk {
    kept: Kept,
    memory: Arc<MemoryStore>,
    medium: MemoryMedium,
    hidden: Hidden,
    opened: u64,
}

/// A commit that is stored, and shows when the store is opened again.
type Hidden = Arc<Mutex<Option<(u32, Vec<Write>)>>>;

impl Disk {
    pub fn new(kept: Kept) -> Self {
        Self { kept, memory: Arc::default(), medium: MemoryMedium::default(), hidden: Hidden::default(), opened: 0 }
    }

    /// Opens it for another process.
    pub fn open(&mut self, world: &Arc<World>, scheduler: &Arc<Scheduler>) -> Result<Store, OpenError> {
        self.opened += 1;
        let inner: Arc<dyn LogStore> = match self.kept {
            Kept::Memory => self.memory.clone(),
            Kept::Database => Arc::new(RedbStore::open_medium(Arc::new(self.medium.clone()), 1 << 20, 0)?),
        };
        let epoch = if self.kept == Kept::Memory { self.opened } else { inner.epoch() };
        let (world, scheduler, hidden) = (world.clone(), scheduler.clone(), self.hidden.clone());
        let store = Store { inner, hidden, epoch, world, scheduler, state: Mutex::new(State::Well) };
        store.show();
        Ok(store)
    }
}

/// The store of one process.
pub(crate) struct Store {
    inner: Arc<dyn LogStore>,
    hidden: Hidden,
    epoch: u64,
    world: Arc<World>,
    scheduler: Arc<Scheduler>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Well,
    /// Until it was opened again, which fails so often.
    Down(u32),
    /// The same; meanwhile what can be read is what was there before.
    Behind(u32),
    Full(Instant),
}

type Committed = Result<Vec<Result<u64, WriteRefused>>, StoreError>;

fn failed() -> StoreError {
    StoreError::Unavailable("told to fail".to_owned())
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the handle can be used for reading.
    fn reads(&self) -> Result<(), StoreError> {
        match *self.state() {
            _ if self.scheduler.is_dead() => Err(failed()),
            State::Down(_) => Err(failed()),
            State::Well | State::Behind(_) | State::Full(_) => Ok(()),
        }
    }

    /// Whether it can be used for whatever it is there for.
    fn well(&self) -> Result<(), StoreError> {
        self.reads()?;
        if matches!(*self.state(), State::Behind(_)) { Err(failed()) } else { Ok(()) }
    }

    /// It is open: shows what was hidden until now.
    fn show(&self) {
        self.world.doubt(false);
        let hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((number, writes)) = hidden {
            self.world.note(format_args!("commit {number:<3} shows"));
            drop(self.apply(number, &writes));
        }
    }

    fn apply(&self, number: u32, writes: &[Write]) -> Committed {
        let results = self.inner.commit(writes)?;
        self.world.committed(number, writes, &results);
        for append in self.world.arrives_now() {
            let name = self.world.know(|witness| witness.name(append.key));
            let result = self.inner.commit(&[Write::Append(append)])?.remove(0);
            self.world.note(format_args!("late      a write of a dead process to {name}: {result:?}"));
            if result.is_ok() {
                let what =
                    format!("a write of a process that died is taken, though a younger one has written to {name}");
                self.world.violated(Violation { invariant: WRITER, what });
            }
        }
        Ok(results)
    }

    fn dies(&self, number: u32, how: Death, down_ms: u64, writes: &[Write]) -> Committed {
        match how {
            Death::Before => {}
            Death::After => drop(self.apply(number, writes)),
            Death::Late => self.world.comes_late(writes),
        }
        self.scheduler.die();
        self.world.note(format_args!("death     at commit {number}, {how:?}"));
        self.world.decide(Fate::Dies { down_ms });
        Err(failed())
    }
}

impl LogStore for Store {
    fn commit(&self, writes: &[Write]) -> Committed {
        self.well()?;
        let full = *self.state();
        if let State::Full(until) = full {
            if Instant::now() < until {
                return Err(StoreError::Full);
            }
            *self.state() = State::Well;
        }
        let (number, fault) = self.world.commits();
        match fault {
            Some(Fault::Fails { leaves, reopens, .. }) => {
                self.world.note(format_args!("commit {number:<3} fails and leaves: {leaves:?}"));
                let state = match leaves {
                    Leaves::Nothing => State::Down(reopens),
                    Leaves::All => {
                        drop(self.apply(number, writes));
                        self.world.doubt(true);
                        State::Down(reopens)
                    }
                    Leaves::Hidden => {
                        let hidden = Some((number, writes.to_vec()));
                        *self.hidden.lock().unwrap_or_else(PoisonError::into_inner) = hidden;
                        State::Behind(reopens)
                    }
                };
                *self.state() = state;
                Err(failed())
            }
            Some(Fault::Full { ms, .. }) => {
                self.world.note(format_args!("commit {number:<3} finds no room"));
                *self.state() = State::Full(Instant::now() + Duration::from_millis(ms));
                Err(StoreError::Full)
            }
            Some(Fault::Stalls { ms, .. }) => {
                self.scheduler.stall(Duration::from_millis(ms));
                self.apply(number, writes)
            }
            Some(Fault::Dies { how, down_ms, .. }) => self.dies(number, how, down_ms, writes),
            _ => self.apply(number, writes),
        }
    }

    fn batch_writes(&self) -> usize {
        self.inner.batch_writes()
    }

    fn figures(&self, tenant: TenantId) -> Result<Figures, StoreError> {
        self.reads()?;
        self.inner.figures(tenant)
    }

    fn known_figures(&self, tenant: TenantId) -> Option<Figures> {
        self.inner.known_figures(tenant)
    }

    fn view(&self) -> Result<Box<dyn View + '_>, StoreError> {
        self.reads()?;
        if self.world.read_fails() {
            self.world.note(format_args!("read      fails"));
            return Err(failed());
        }
        self.inner.view()
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn sweep_receipts(&self, now: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.well()?;
        self.inner.sweep_receipts(now, limit)
    }

    fn pack(&self, before: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.well()?;
        self.inner.pack(before, limit)
    }

    fn rest(&self) -> Result<(), StoreError> {
        self.well()?;
        self.inner.rest()
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        match *state {
            _ if self.scheduler.is_dead() => return Err(failed()),
            State::Down(left @ 1..) => {
                *state = State::Down(left - 1);
                return Err(failed());
            }
            State::Behind(left @ 1..) => {
                *state = State::Behind(left - 1);
                return Err(failed());
            }
            State::Full(until) if Instant::now() < until => return Err(StoreError::Full),
            State::Down(0) | State::Behind(0) | State::Full(_) | State::Well => *state = State::Well,
        }
        drop(state);
        self.show();
        Ok(())
    }
}
