//! Where things run: actors on arbiters, tasks and what blocks on the threads of a pool; or, in a simulation, all of it
//! here, on the thread that asks, in an order that is chosen.
//!
//! Nothing else in this crate starts an actor of the runtime or a task, so nothing else knows which of the two it is.

use std::sync::Arc;

use actix::{Actor, Addr, Context};
use actix_rt::ArbiterHandle;
use tokio::{runtime::Handle, task::JoinHandle};

use crate::simulation::Scheduler;

/// Where actors run.
pub(crate) enum Stage {
    /// On threads of their own.
    Arbiters { hosts: Vec<ArbiterHandle>, front: ArbiterHandle, store: ArbiterHandle },
    /// On the current thread, inside a `LocalSet`.
    Here(Arc<Scheduler>),
}

/// Where an actor has its place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum On {
    /// With the actors of which there is one each.
    Front,
    /// Apart from all others, who would wait for its disk.
    Store,
    /// Among the actors that hosts are spread over, in turn by this number.
    Hosts(usize),
}

impl Stage {
    /// Starts an actor, which is made where it runs.
    pub fn start<A>(&self, on: On, make: impl FnOnce(&mut Context<A>) -> A + Send + 'static) -> Addr<A>
    where
        A: Actor<Context = Context<A>>,
    {
        match self {
            Self::Arbiters { hosts, front, store } => {
                let arbiter = match on {
                    On::Front => front,
                    On::Store => store,
                    On::Hosts(turn) => &hosts[turn % hosts.len()],
                };
                A::start_in_arbiter(arbiter, make)
            }
            Self::Here(scheduler) => {
                let mut ctx = Context::new();
                let actor = make(&mut ctx);
                let running = ctx.into_future(actor);
                let addr = running.address();
                scheduler.run(on, running);
                addr
            }
        }
    }
}

/// Where tasks run, and what blocks. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Tasks {
    /// On the threads of this runtime.
    Pool(Handle),
    /// On the current thread, inside a `LocalSet`.
    Here(Arc<Scheduler>),
}

impl Tasks {
    /// Runs a task. Dropping the handle lets it go on.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match self {
            Self::Pool(pool) => pool.spawn(task),
            Self::Here(scheduler) => scheduler.spawn(task),
        }
    }

    /// Runs what blocks, a read of the store above all.
    pub fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        match self {
            Self::Pool(pool) => pool.spawn_blocking(work),
            Self::Here(scheduler) => scheduler.blocking(work),
        }
    }
}
