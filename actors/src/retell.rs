//! Threads that are told again what others were told.
//!
//! Through the same door as every command: admitted, sent to the thread's actor, which may have to be loaded first, and
//! answered when it is durable. Only the world of each command is the one that it was told in, and nothing but what is
//! told happens: see [`crate::Config::retells`].

use std::sync::Arc;

use raddle_domain::{
    command::{Command, NewThread},
    event::Record,
    id::{Seq, TenantId, ThreadKey},
    ports::{Boundless, Ids},
    thread::{Cx, ThreadState},
    trace::Minted,
};
use tracing::Span;

use crate::{
    handle::{Begun, Call, Error, Runtime, thread_of},
    host::{Answer, Envelope, Held, Outcome, World},
    system::Shared,
    thread::ThreadMachine,
};

/// Something that a thread is told again.
#[derive(Debug, Clone)]
pub struct Again {
    pub world: World,
    pub command: Command,
    pub if_match: Option<Seq>,
}

/// Where the ids of a step come from.
pub(crate) fn ids(world: Option<&World>, shared: &Shared) -> Arc<dyn Ids> {
    match world {
        None => shared.ids.clone(),
        Some(world) => Arc::new(Minted::new(world.minted.clone())),
    }
}

impl Runtime {
    /// Makes a thread as another one was made.
    pub async fn tell_to_be(&self, key: ThreadKey, new: NewThread, world: World) -> Result<Seq, Error> {
        let ThreadKey { tenant, thread } = key;
        let begin = async {
            let shared = self.shared();
            let ids = ids(Some(&world), shared);
            let cx = Cx {
                now: world.at,
                ids: &*ids,
                limits: &shared.config.limits,
                prices: &shared.prices,
                draining: world.draining,
                room: &Boundless,
            };
            let (state, step) = ThreadState::create(thread, new, cx)?;
            Ok(Begun::thread(tenant, state, step, None))
        };
        Ok(self.make(tenant, Call::default(), begin, thread_of).await?.seq)
    }

    /// Makes a thread of a log.
    pub async fn give(&self, tenant: TenantId, log: Vec<Record>) -> Result<Seq, Error> {
        let begin = async {
            let given = ThreadState::given(log).map_err(|why| Error::ThreadUnavailable(why.to_string()));
            let (state, step) = given?;
            Ok(Begun { given: true, ..Begun::thread(tenant, state, step, None) })
        };
        Ok(self.make(tenant, Call::default(), begin, thread_of).await?.seq)
    }

    /// Tells a thread something again, in order. For each, where its log ended then, or how it was refused. An actor
    /// that ends meanwhile is loaded anew, and told the rest.
    pub async fn tell(&self, key: ThreadKey, all: Vec<Again>) -> Result<Vec<Result<Seq, Error>>, Error> {
        let mut came = Vec::with_capacity(all.len());
        let mut tries = 0;
        while came.len() < all.len() {
            let mut outcomes = Vec::with_capacity(all.len() - came.len());
            for Again { world, command, if_match } in &all[came.len()..] {
                let (place, turn) = (self.admit(key.tenant)?, self.turn_to_work(key.tenant).await?);
                let ticket = self.ticket::<ThreadMachine>(key, false).await?;
                let addr = ticket.actor().of::<ThreadMachine>().ok_or(Error::NotFound("thread"))?.clone();
                let held = Held { _ticket: ticket, place, turn, coming: None, in_flight: None };
                let (answer, outcome) = Answer::new(held);
                addr.do_send(Envelope {
                    command: command.clone(),
                    if_match: *if_match,
                    idempotency: None,
                    by: None,
                    world: Some(Box::new(world.clone())),
                    answer,
                    cause: Span::none(),
                });
                outcomes.push((outcome, addr));
            }
            for (outcome, addr) in outcomes {
                match outcome.await {
                    Ok(Outcome::Done { seq, .. }) => came.push(Ok(seq)),
                    Ok(Outcome::Failed(error)) => came.push(Err(error)),
                    // Nothing behind it ran either.
                    Ok(Outcome::NotRun(_)) if tries < 4 => {
                        tries += 1;
                        self.shared().registry.forget_closed(&key, &addr);
                        tokio::task::yield_now().await;
                        break;
                    }
                    Ok(Outcome::NotRun(_)) | Err(_) => {
                        return Err(Error::Internal("a thread failed while it was told something again".to_owned()));
                    }
                }
            }
        }
        Ok(came)
    }
}
