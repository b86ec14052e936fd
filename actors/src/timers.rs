//! Durable timers: wakes threads that only wait and are not loaded. One sleeping timer for all of them.
//!
//! The times are in the store, kept by the appends that set them. A loaded thread looks after its own.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use raddle_domain::time::UnixMs;
use tokio::sync::oneshot;

use crate::{supervisor::Load, system::Shared};

/// Threads woken at a time.
const BATCH: usize = 64;
/// The shortest sleep: a time that has passed belongs to a thread that is loaded, or is being loaded.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest: what a clock that was set back can cost.
const LONGEST: Duration = Duration::from_secs(60);
/// Expired receipts removed at a time.
const RECEIPTS: usize = 512;

#[derive(Default)]
pub(crate) struct Timers {
    shared: Option<Arc<Shared>>,
    sleep: Option<(UnixMs, SpawnHandle)>,
}

/// What all actors share; the first message.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Begin(pub Arc<Shared>);

/// Something is due then that may not have been known here.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Rearm(pub UnixMs);

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
        let read = shared.engines.spawn_blocking(move || {
            store.sweep_receipts(now, RECEIPTS)?;
            let view = store.view()?;
            Ok::<_, raddle_domain::ports::StoreError>((view.due(now, BATCH)?, view.next_wake()?))
        });
        ctx.spawn(read.into_actor(self).map(move |read, this, ctx| {
            let next = match read {
                Ok(Ok((due, next))) => {
                    for (_, key) in due.into_iter().filter(|(_, key)| !shared.registry.contains(key)) {
                        // Once loaded it ticks by itself; nobody waits for the ticket.
                        let (reply, _) = oneshot::channel();
                        shared.supervisor.do_send(Load { key, reply });
                    }
                    next
                }
                failed => {
                    tracing::warn!(?failed, "cannot read the timers; trying again");
                    None
                }
            };
            this.arm(next.unwrap_or(now.after(LONGEST)), SHORTEST, ctx);
        }));
    }
}

impl Actor for Timers {
    type Context = Context<Self>;
}

impl Handler<Begin> for Timers {
    type Result = ();

    fn handle(&mut self, Begin(shared): Begin, ctx: &mut Self::Context) {
        self.shared = Some(shared);
        self.ring(ctx);
    }
}

impl Handler<Rearm> for Timers {
    type Result = ();

    fn handle(&mut self, Rearm(at): Rearm, ctx: &mut Self::Context) {
        self.arm(at, Duration::ZERO, ctx);
    }
}
