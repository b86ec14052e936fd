//! Keeps one server running: starts it, reads its list, starts it again when it has died.
//!
//! ```text
//! starting ─▶ ready ─▶ failed ─(pause)─▶ starting …
//!     └────────────────▶┘
//! ```
//! The pause grows from half a second to a minute while starts follow each other, and is short again once a server
//! was well for a minute. Nothing waits for a server: its calls fail, with the reason, until it is back.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    board::Board,
    catalogue::{Catalogue, LeftOut},
    config::Server,
    link::{Connect, Link},
};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A server that ran so long has not failed to start.
const WELL: Duration = Duration::from_secs(60);
/// Between two readings of a list, however often the server says that it has changed.
const BETWEEN_LISTS: Duration = Duration::from_millis(250);

/// A server that is kept.
pub struct Kept {
    pub config: Server,
    pub call_timeout: Duration,
    link: RwLock<Result<Arc<dyn Link>, String>>,
}

impl Kept {
    pub fn new(config: Server, call_timeout: Duration) -> Self {
        let call_timeout = config.call_timeout.unwrap_or(call_timeout);
        Self { config, call_timeout, link: RwLock::new(Err("it has not started yet".to_owned())) }
    }

    /// The connection, or why there is none.
    pub fn link(&self) -> Result<Arc<dyn Link>, String> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, link: Result<Arc<dyn Link>, String>) {
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = link;
    }
}

/// Puts what a server offers where it can be called.
pub type Publish = Box<dyn Fn(&Arc<Kept>, &Catalogue) + Send + Sync>;

/// Who keeps it.
pub struct Keeper {
    pub at: usize,
    pub server: Arc<Kept>,
    pub connect: Arc<dyn Connect>,
    pub startup_timeout: Duration,
    pub board: Arc<Board>,
    /// Takes what the server lists, each time that it was read.
    pub publish: Publish,
    pub stop: CancellationToken,
}

impl Keeper {
    /// Until it is stopped; then the server has been ended.
    pub async fn keep(self) {
        let mut pause = Pause::default();
        loop {
            self.board.starting(self.at);
            let why = match self.until_stopped(self.start()).await {
                None => return,
                Some(Err(why)) => why,
                Some(Ok((link, found))) => {
                    let since = Instant::now();
                    self.server.set(Ok(link.clone()));
                    self.list(&found);
                    let ended = self.until_stopped(self.serve(&*link)).await;
                    self.server.set(Err(ended.clone().unwrap_or_else(|| "it was stopped".to_owned())));
                    link.close().await;
                    let Some(ended) = ended else { return };
                    if since.elapsed() >= WELL {
                        pause = Pause::default();
                    }
                    ended
                }
            };
            tracing::warn!(server = self.server.config.name, why, "an MCP server does not run");
            self.server.set(Err(why.clone()));
            self.board.failed(self.at, &why);
            if self.until_stopped(sleep(pause.next())).await.is_none() {
                return;
            }
        }
    }

    async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    async fn start(&self) -> Result<(Arc<dyn Link>, Catalogue), String> {
        let started = timeout(self.startup_timeout, async {
            let link = self.connect.connect().await?;
            let found = self.read(&*link).await;
            match found {
                Ok(found) => Ok((link, found)),
                Err(why) => {
                    link.close().await;
                    Err(why)
                }
            }
        });
        let late = || format!("it was not ready within {} ms", self.startup_timeout.as_millis());
        started.await.unwrap_or_else(|_| Err(late()))
    }

    async fn read(&self, link: &dyn Link) -> Result<Catalogue, String> {
        tokio::select! {
            listed = link.list() => Ok(Catalogue::new(&self.server.config, &listed?)),
            why = link.ended() => Err(why),
        }
    }

    /// Reads the list whenever it has changed, until the connection ends; why it did.
    async fn serve(&self, link: &dyn Link) -> String {
        loop {
            tokio::select! {
                why = link.ended() => return why,
                () = link.changed() => {}
            }
            match timeout(self.startup_timeout, self.read(link)).await {
                Ok(Ok(found)) => self.list(&found),
                Ok(Err(why)) => return why,
                Err(_) => return "it no longer lists its tools".to_owned(),
            }
            tokio::select! {
                why = link.ended() => return why,
                () = sleep(BETWEEN_LISTS) => {}
            }
        }
    }

    fn list(&self, found: &Catalogue) {
        for LeftOut { tool, why } in &found.left_out {
            tracing::info!(server = self.server.config.name, tool, why, "a tool of an MCP server is left out");
        }
        (self.publish)(&self.server, found);
        self.board.ready(self.at, found);
    }
}

/// How long to wait before the next start.
#[derive(Default)]
struct Pause(u32);

impl Pause {
    fn next(&mut self) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.0.min(16)).min(LONGEST_PAUSE);
        self.0 += 1;
        pause
    }
}

#[cfg(test)]
mod tests;
