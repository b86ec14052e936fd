//! Tools of others: a client of the Model Context Protocol. Servers are configured by the operator, run beside us,
//! and what they list is offered to models as `server__tool`.
//!
//! ```text
//! file ─▶ config ─▶ Mcp ─▶ keeper (one per server) ─▶ link ─▶ child process, or HTTP
//!                    │          │ list                  ▲
//!                    │          ▼                       │ call
//!                    │      catalogue ─▶ Shelf ─▶ Toolbox ─▶ tool
//!                    └─▶ board ─▶ GET /v1/mcp, its stream, metrics
//! ```
//! Servers are strangers: what they list and answer is bounded and checked ([`catalogue`], [`link`], [`answer`]), what
//! they say about the harmlessness of their tools counts only where the operator says so, and what they were given to
//! log in with is hidden in whatever they say ([`secrets`]). No server can delay our own start, or outlive us
//! ([`guard`]).
//!
//! Absent on purpose: prompts, resources and sampling, which no thread asks for; OAuth, because nobody is there to
//! log in (a token goes into `headers`); a sandbox: a server is the operator's program, with the operator's rights.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use raddle_domain::ports::Clock;
use tokio::{sync::broadcast, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

mod answer;
pub mod board;
mod catalogue;
mod child;
pub mod config;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(target_os = "linux")]
pub mod guard;
mod keeper;
mod link;
pub(crate) mod secrets;
mod tool;

use self::{
    board::{Board, Event, ServerState, Status, Summary},
    config::Server,
    keeper::{Keeper, Kept},
    link::{Connect, Connector},
    tool::McpTool,
};
use crate::tools::{Shelf, Source, Tool, Waiting};

/// The subcommand that is the guard of a server.
pub const GUARD: &str = "mcp-guard";

/// The library's own log lines hold what servers say, secrets included. What is worth a line is said here.
pub const QUIET: &str = "rmcp=off";

/// What a shell says of a command that cannot be run.
const CANNOT_RUN: u8 = 127;

/// How long a shutdown waits for servers to end; what is left then is ended by its guard.
const STOP: Duration = Duration::from_secs(2);

/// Times that hold for every server.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until a server has to be ready.
    pub startup: Duration,
    /// How long a call may go without a sign of life.
    pub call: Duration,
}

/// All servers. A handle: clones are the same servers.
#[derive(Clone)]
pub struct Mcp(Arc<Inner>);

impl fmt::Debug for Mcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mcp({})", self.0.servers.len())
    }
}

struct Inner {
    servers: Vec<(Arc<Kept>, Arc<dyn Connect>)>,
    startup_timeout: Duration,
    board: Arc<Board>,
    shelves: Shelves,
    stop: CancellationToken,
    keepers: Mutex<JoinSet<()>>,
}

impl Mcp {
    /// The servers, none of them started.
    pub fn new(servers: Vec<Server>, timeouts: Timeouts, clock: Arc<dyn Clock>) -> Result<Self, reqwest::Error> {
        let connector = |server: Server| Ok((server.clone(), Arc::new(Connector::new(server)?) as Arc<dyn Connect>));
        let servers = servers.into_iter().map(connector).collect::<Result<_, reqwest::Error>>()?;
        Ok(Self::over(servers, timeouts, clock))
    }

    fn over(servers: Vec<(Server, Arc<dyn Connect>)>, timeouts: Timeouts, clock: Arc<dyn Clock>) -> Self {
        let shown = servers.iter().map(|(server, _)| (server.name.clone(), server.reach.transport(), server.disabled));
        let board = Arc::new(Board::new(clock, shown));
        let kept = |(server, connect)| (Arc::new(Kept::new(server, timeouts.call)), connect);
        let servers: Vec<_> = servers.into_iter().map(kept).collect();
        let shelves = Shelves(Arc::new(RwLock::new((vec![Shelf::default(); servers.len()], Arc::default()))));
        let (stop, keepers) = (CancellationToken::new(), Mutex::default());
        Self(Arc::new(Inner { servers, startup_timeout: timeouts.startup, board, shelves, stop, keepers }))
    }

    /// Starts all of them at once, and waits for none. To be called once.
    pub fn start(&self) {
        let mut keepers = self.0.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, (server, connect)) in self.0.servers.iter().enumerate() {
            if server.config.disabled {
                continue;
            }
            let shelves = self.0.shelves.clone();
            let keeper = Keeper {
                at,
                server: server.clone(),
                connect: connect.clone(),
                startup_timeout: self.0.startup_timeout,
                board: self.0.board.clone(),
                publish: Box::new(move |server, found| {
                    let tool = |offered: &catalogue::Offered| {
                        Arc::new(McpTool { server: server.clone(), offered: offered.clone() }) as Arc<dyn Tool>
                    };
                    shelves.put(at, Shelf::of(found.offered.iter().map(tool)));
                }),
                stop: self.0.stop.clone(),
            };
            keepers.spawn(keeper.keep());
        }
    }

    /// How each server is, and how the start went once it is over.
    pub fn states(&self) -> (Vec<Arc<ServerState>>, Option<Arc<Summary>>) {
        self.0.board.read()
    }

    /// How things are, and what changes from then on.
    pub fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.0.board.watch()
    }

    /// Ends all servers, and every watcher's stream.
    pub async fn stop(&self) {
        self.0.board.end();
        self.0.stop.cancel();
        let mut keepers = std::mem::take(&mut *self.0.keepers.lock().unwrap_or_else(PoisonError::into_inner));
        if timeout(STOP, async { while keepers.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!("an MCP server takes too long to end");
        }
    }
}

/// What each server offers, and all of it together, which is made when something changes.
#[derive(Clone)]
struct Shelves(Arc<RwLock<(Vec<Shelf>, Arc<Shelf>)>>);

impl Shelves {
    fn put(&self, at: usize, shelf: Shelf) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = held.0.get_mut(at) {
            *place = shelf;
        }
        held.1 = Arc::new(held.0.iter().cloned().collect());
    }
}

impl Source for Mcp {
    fn shelf(&self) -> Arc<Shelf> {
        self.0.shelves.0.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// A server that is on its way: what was approved before a restart is not to fail for being early.
    fn expect(&self, tool: &str) -> Option<Waiting> {
        let of = |kept: &Kept| !kept.config.disabled && catalogue::belongs(&kept.config.prefix, tool);
        let at = self.0.servers.iter().position(|(kept, _)| of(kept))?;
        let board = self.0.board.clone();
        Some(Box::pin(async move {
            let (now, mut later) = board.watch();
            if now.contains(&Event::End) {
                return;
            }
            while board.read().0[at].status == Status::Starting {
                match later.recv().await {
                    Ok(Event::End) | Err(broadcast::error::RecvError::Closed) => return,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                }
            }
        }))
    }
}
