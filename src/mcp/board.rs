//! How the servers are: the newest state of each, and what changed, for whoever watches.
//!
//! Events here are about the process. They are not stored: who comes later is told how things are now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raddle_domain::{ports::Clock, record::EffectClass, time::UnixMs};
use serde::Serialize;
use tokio::sync::broadcast;
use utoipa::ToSchema;

use super::catalogue::Catalogue;

/// Changes that a watcher may be behind; beyond that it is told how things are now.
const BEHIND: usize = 256;

/// How a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = McpStatus)]
pub enum Status {
    /// It is being started, or reached.
    Starting,
    Ready,
    /// It does not run, and is started again before long.
    Failed,
    /// It is disabled.
    Cancelled,
}

impl Status {
    pub const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Failed, Self::Cancelled];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A server, as far as people are shown.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = McpServer)]
pub struct ServerState {
    pub server: String,
    /// `stdio` or `http`.
    pub transport: &'static str,
    pub status: Status,
    /// Why it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it lists; of a server that does not run, what it listed last.
    pub tools: Vec<ToolState>,
    /// Since when its status is what it is.
    pub since: UnixMs,
    /// How often it was started again.
    pub restarts: u64,
}

/// A tool of a server.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = McpTool)]
pub struct ToolState {
    /// What models call it, if it is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What its server calls it.
    pub tool: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<EffectClass>,
    /// Why it is not offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// How the first start of all servers went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = McpStartup)]
pub struct Summary {
    pub ready: Vec<String>,
    pub failed: Vec<FailedServer>,
    pub cancelled: Vec<String>,
}

/// A server that did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = McpFailed)]
pub struct FailedServer {
    pub server: String,
    pub error: String,
}

/// What watchers are told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Server(Arc<ServerState>),
    StartupComplete(Arc<Summary>),
    /// Nothing follows: the process goes down.
    End,
}

/// All servers.
pub struct Board {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    servers: Vec<Arc<ServerState>>,
    summary: Option<Arc<Summary>>,
    ended: bool,
    watchers: broadcast::Sender<Event>,
}

impl Board {
    /// Servers with their transports; those that are disabled never leave that state.
    pub fn new(clock: Arc<dyn Clock>, servers: impl Iterator<Item = (String, &'static str, bool)>) -> Self {
        let since = clock.now();
        let state = |(server, transport, disabled): (String, &'static str, bool)| {
            let status = if disabled { Status::Cancelled } else { Status::Starting };
            Arc::new(ServerState { server, transport, status, error: None, tools: Vec::new(), since, restarts: 0 })
        };
        let mut state = State {
            servers: servers.map(state).collect(),
            summary: None,
            ended: false,
            watchers: broadcast::Sender::new(BEHIND),
        };
        state.sum_up();
        Self { clock, state: Mutex::new(state) }
    }

    /// Each server, in the order of their names, and how the start went once it is over.
    pub fn read(&self) -> (Vec<Arc<ServerState>>, Option<Arc<Summary>>) {
        let state = self.lock();
        (state.servers.clone(), state.summary.clone())
    }

    /// How things are, as events, and what changes from then on.
    pub fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let state = self.lock();
        let servers = state.servers.iter().cloned().map(Event::Server);
        let rest = state.summary.iter().cloned().map(Event::StartupComplete);
        let end = state.ended.then_some(Event::End);
        (servers.chain(rest).chain(end).collect(), state.watchers.subscribe())
    }

    pub fn starting(&self, at: usize) {
        self.change(at, |server| {
            // It is tried again, and nobody was told that it failed only to hear nothing about it.
            server.restarts += u64::from(server.status == Status::Failed);
            (server.status, server.error) = (Status::Starting, None);
        });
    }

    pub fn ready(&self, at: usize, found: &Catalogue) {
        self.change(at, |server| {
            (server.status, server.error) = (Status::Ready, None);
            server.tools = tools(found);
        });
    }

    pub fn failed(&self, at: usize, why: &str) {
        self.change(at, |server| (server.status, server.error) = (Status::Failed, Some(why.to_owned())));
    }

    /// The last event.
    pub fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let _ = state.watchers.send(Event::End);
    }

    fn change(&self, at: usize, change: impl FnOnce(&mut ServerState)) {
        let mut state = self.lock();
        let Some(place) = state.servers.get_mut(at) else { return };
        let server = Arc::make_mut(place);
        let before = server.status;
        change(server);
        if server.status != before {
            server.since = self.clock.now();
        }
        let event = Event::Server(place.clone());
        let _ = state.watchers.send(event);
        if state.sum_up()
            && let Some(summary) = state.summary.clone()
        {
            let _ = state.watchers.send(Event::StartupComplete(summary));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sums the start up, if this was what it waited for.
    fn sum_up(&mut self) -> bool {
        let done = self.servers.iter().all(|server| server.status != Status::Starting);
        if self.summary.is_some() || !done {
            return false;
        }
        let named = |status| self.servers.iter().filter(move |server| server.status == status);
        let names = |status| named(status).map(|server| server.server.clone()).collect();
        let failed = named(Status::Failed).map(|server| FailedServer {
            server: server.server.clone(),
            error: server.error.clone().unwrap_or_default(),
        });
        let summary =
            Summary { ready: names(Status::Ready), failed: failed.collect(), cancelled: names(Status::Cancelled) };
        self.summary = Some(Arc::new(summary));
        true
    }
}

fn tools(found: &Catalogue) -> Vec<ToolState> {
    let offered = found.offered.iter().map(|tool| ToolState {
        name: Some(tool.name.clone()),
        tool: tool.tool.clone(),
        class: Some(tool.class),
        left_out: None,
    });
    let left_out = found.left_out.iter().map(|tool| ToolState {
        name: None,
        tool: tool.tool.clone(),
        class: None,
        left_out: Some(tool.why.clone()),
    });
    offered.chain(left_out).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Frozen;
    impl Clock for Frozen {
        fn now(&self) -> UnixMs {
            UnixMs(7)
        }
    }

    fn board(servers: &[(&str, bool)]) -> Board {
        let servers = servers.iter().map(|(name, disabled)| ((*name).to_owned(), "stdio", *disabled));
        Board::new(Arc::new(Frozen), servers)
    }

    #[test]
    fn the_start_is_summed_up_once_when_the_last_server_has_its_end() {
        let board = board(&[("a", false), ("b", true), ("c", false)]);
        let (now, mut later) = board.watch();
        assert_eq!(now.len(), 3);
        board.ready(0, &Catalogue::default());
        assert_eq!(board.read().1, None);
        board.failed(2, "no");
        let failed = vec![FailedServer { server: "c".into(), error: "no".into() }];
        let summary = Arc::new(Summary { ready: vec!["a".into()], failed, cancelled: vec!["b".into()] });
        assert_eq!(board.read().1, Some(summary.clone()));
        board.starting(2);
        board.ready(2, &Catalogue::default());
        let mut told = Vec::new();
        while let Ok(event) = later.try_recv() {
            told.push(event);
        }
        let summaries: Vec<_> = told.iter().filter(|event| matches!(event, Event::StartupComplete(_))).collect();
        assert_eq!((told.len(), summaries), (5, vec![&Event::StartupComplete(summary)]));
        assert_eq!(board.read().0[2].restarts, 1);
    }

    #[test]
    fn who_comes_late_is_told_how_things_are() {
        assert!(board(&[]).read().1.is_some());
        let board = board(&[("a", false)]);
        board.failed(0, "no");
        let (now, _) = board.watch();
        assert!(matches!(&now[..], [Event::Server(server), Event::StartupComplete(_)] if server.error.is_some()));
        board.end();
        assert_eq!(board.watch().0.last(), Some(&Event::End));
    }
}
