//! Durable timers: wakes threads that only wait and are not loaded. One sleeping timer for all of them.
//!
//! The times are in the store, kept by the appends that set them. A loaded thread looks after its own, and is told
//! when its time has passed all the same.
//!
//! What the store has to be told to do now and then is told from here too: to drop receipts that expired, and to pack
//! the logs of turns that ended a while ago. Packing goes on in portions with pauses, so that commits go first.

use std::{collections::HashSet, sync::Arc, time::Duration};

use actix::prelude::*;
#[cfg(feature = "planted")]
use raddle_domain::planted;
use raddle_domain::{id::ThreadKey, ports::StoreError, time::UnixMs};
use tokio::sync::oneshot;

use crate::{supervisor::Load, system::Shared};

/// Threads woken at a time.
const BATCH: usize = 64;
/// The shortest sleep: a time that has passed belongs to a thread that is loaded, is being loaded, or cannot be.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest: what a clock that was set back can cost.
const LONGEST: Duration = Duration::from_secs(60);
/// Expired receipts removed at a time.
const RECEIPTS: usize = 512;
/// Turns packed at a time: about what a commit may have to wait for.
const PORTION: usize = 16;
/// Between two portions.
const PAUSE: Duration = Duration::from_millis(25);

#[derive(Default)]
pub(crate) struct Timers {
    shared: Option<Arc<Shared>>,
    sleep: Option<(UnixMs, SpawnHandle)>,
    /// Times that have come and are still in the store, of threads that are not loaded: they were sent for, and
    /// nobody sends again.
    rung: HashSet<(UnixMs, ThreadKey)>,
    /// Whether the store was left with something packed and has not rested since.
    packed: bool,
}

/// What all actors share; the first message.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Begin(pub Arc<Shared>);

/// Something is due then that may not have been known here.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Rearm(pub UnixMs);

/// The store can be written to again. Whoever was sent for meanwhile could not save what became of his time, and is sent
/// for anew.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Again;

impl Timers {
    fn arm(&mut self, at: UnixMs, shortest: Duration, ctx: &mut Context<Self>) {
        let Some(shared) = &self.shared else { return };
        if self.sleep.as_ref().is_some_and(|(armed, _)| *armed <= at) {
            return;
        }
        if let Some((_, sleep)) = self.sleep.take() {
            ctx.cancel_future(sleep);
        }
        let wait = Duration::from_millis(at.since(shared.clock.now())).clamp(shortest, LONGEST);
        self.sleep = Some((
            at,
            ctx.run_later(wait, |this, ctx| {
                this.sleep = None;
                this.ring(ctx);
            }),
        ));
    }

    /// Wakes what is due, then sleeps until the next.
    fn ring(&mut self, ctx: &mut Context<Self>) {
        let Some(shared) = self.shared.clone() else { return };
        let now = shared.clock.now();
        let store = shared.store.clone();
        let batch = BATCH + self.rung.len();
        let read = shared.tasks.blocking(move || {
            let view = store.view()?;
            let (due, next) = (view.due(now, batch)?, view.next_wake()?);
            drop(view);
            // Threads are not kept waiting by a store that cannot be tidied now.
            let swept = store.sweep_receipts(now, RECEIPTS).unwrap_or_else(|error| {
                tracing::debug!(%error, "expired receipts stay for now");
                0
            });
            Ok::<_, StoreError>((due, next.filter(|_| swept < RECEIPTS).or((swept == RECEIPTS).then_some(now))))
        });
        ctx.spawn(read.into_actor(self).map(move |read, this, ctx| {
            let next = match read {
                Ok(Ok((due, next))) => {
                    let mut rung = HashSet::new();
                    for (at, key) in due {
                        match shared.registry.ticket(&key) {
                            // Its own alarm may be late: it counts no time in which the machine slept, or by which
                            // the clock was set forward.
                            Some(ticket) => ticket.actor().tick(),
                            None => {
                                rung.insert((at, key));
                                if !this.rung.contains(&(at, key)) {
                                    // Once loaded it ticks by itself; nobody waits for the ticket.
                                    let (reply, _) = oneshot::channel();
                                    shared.supervisor.do_send(Load { key, asked: false, reply });
                                }
                            }
                        }
                    }
                    this.rung = rung;
                    next
                }
                failed => {
                    tracing::warn!(?failed, "cannot read the timers; trying again");
                    None
                }
            };
            #[cfg(feature = "planted")]
            if planted::is(planted::Fault::ForgetTimer) && !this.rung.is_empty() {
                return;
            }
            this.arm(next.unwrap_or(now.after(LONGEST)), SHORTEST, ctx);
        }));
    }

    /// Packs a portion of what ended long enough ago, and comes back.
    fn pack(&mut self, ctx: &mut Context<Self>) {
        let Some(shared) = self.shared.clone().filter(|shared| !shared.draining()) else { return };
        let age = shared.config.pack_after;
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let before = UnixMs(shared.clock.now().0.saturating_sub(age_ms));
        let (store, restless) = (shared.store.clone(), self.packed);
        let packed = shared.tasks.blocking(move || {
            let packed = store.pack(before, PORTION)?;
            if packed == 0 && restless {
                // Nobody else may write for a long time, and the next start is to be quick.
                store.rest()?;
            }
            Ok::<_, StoreError>(packed)
        });
        ctx.spawn(packed.into_actor(self).map(move |packed, this, ctx| {
            let wait = match packed {
                Ok(Ok(packed)) => {
                    this.packed = packed > 0;
                    if this.packed { PAUSE } else { age.clamp(SHORTEST, LONGEST) }
                }
                failed => {
                    tracing::debug!(?failed, "logs stay as they are for now");
                    LONGEST
                }
            };
            ctx.run_later(wait, Self::pack);
        }));
    }
}

impl Actor for Timers {
    type Context = Context<Self>;
}

impl Handler<Begin> for Timers {
    type Result = ();

    fn handle(&mut self, Begin(shared): Begin, ctx: &mut Self::Context) {
        if shared.config.retells {
            return;
        }
        self.shared = Some(shared);
        self.ring(ctx);
        self.pack(ctx);
    }
}

impl Handler<Rearm> for Timers {
    type Result = ();

    fn handle(&mut self, Rearm(at): Rearm, ctx: &mut Self::Context) {
        self.arm(at, Duration::ZERO, ctx);
    }
}

impl Handler<Again> for Timers {
    type Result = ();

    fn handle(&mut self, _: Again, ctx: &mut Self::Context) {
        self.rung.clear();
        self.ring(ctx);
    }
}
