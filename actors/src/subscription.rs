//! A watcher: what is stored after its cursor, then what happens, each event once and in order.
//!
//! ```text
//!             a page that is the last            nothing was missed
//!  Backlog -------------------------> Joining --------------------> Live ---> Over
//!     ^                                  |                            |
//!     '----- the bus let it go: watch anew, or a piece was missed ----'
//! ```
//! The watch begins before the log is read, so nothing falls between the two; what both have is told apart by the
//! cursor. This is the machine; what is watched, and what a cursor is, says a [`Source`].

mod feed;
mod tenant;
mod thread;

use std::{future::Future, sync::atomic::Ordering::Relaxed};

use tokio::task::JoinHandle;

pub use self::{
    feed::{TenantCursor, TenantPage},
    tenant::{TenantNext, TenantSubscription},
    thread::{Next, Subscription},
};
pub(crate) use self::{
    feed::{tenant_now, tenant_page},
    tenant::{OfTenant, Wanted},
    thread::OfThread,
};
use crate::{
    bus::Watch,
    handle::{Error, Runtime},
    places::Hold,
};

/// Events read from the log at a time.
const PAGE: usize = 4_000;
const PAGE_BYTES: usize = 512 * 1024;
/// A page of so many events is probably not the last one.
const AHEAD: usize = 256;

/// What a watcher watches.
pub(crate) trait Source: Clone + Send + Sync + 'static {
    /// A place in it.
    type Cursor: Copy + Send + Sync + 'static;
    /// What is read from the log at a time.
    type Page: Send + 'static;
    /// What the bus hands over at a time.
    type Piece: Send;
    /// What of a piece was not seen before.
    type News: Send;

    /// Begins a watch.
    fn watch(&self, runtime: &Runtime) -> impl Future<Output = Result<Watch<Self::Piece>, Error>> + Send;

    /// Reads from right after `after`.
    fn read(self, runtime: Runtime, after: Self::Cursor) -> impl Future<Output = Result<Read<Self>, Error>> + Send;

    /// Whether it is gone for good. Asked after a watch began anew: what happened before, nobody says again.
    fn is_gone(&self, runtime: &Runtime) -> impl Future<Output = bool> + Send;

    /// Takes what is new in `piece`, and moves the cursor behind it.
    fn hear(&self, after: &mut Self::Cursor, piece: Self::Piece) -> Heard<Self::News>;
}

/// A piece of the backlog.
pub(crate) struct Read<S: Source> {
    /// `None` when there is nothing to tell.
    pub page: Option<S::Page>,
    pub after: S::Cursor,
    pub rest: Rest,
}

/// What is left to be read behind a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    Nothing,
    /// Perhaps something.
    Some,
    /// Probably a lot: worth reading ahead.
    Much,
}

/// What a piece of the bus came to.
pub(crate) struct Heard<N> {
    pub news: Option<N>,
    pub then: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Backlog,
    Joining,
    Live,
    Over,
}

/// What a watcher gets next.
pub(crate) enum Told<S: Source> {
    Stored(S::Page),
    Live(S::News),
    /// Nothing follows, as behind the others below.
    Gap(S::Cursor),
    Shutdown(S::Cursor),
    Over,
}

/// The machine. Holds a place among the bounded number of watchers.
pub(crate) struct Follow<S: Source> {
    runtime: Runtime,
    source: S,
    after: S::Cursor,
    watch: Watch<S::Piece>,
    phase: Phase,
    /// The next page of a long backlog, read while the one before is sent.
    ahead: Option<JoinHandle<Result<Read<S>, Error>>>,
    /// Whether it counts as dropped when it is let go while live: a wait of the runtime itself looks again, and cuts off
    /// nobody.
    counts: bool,
    _place: Hold,
}

impl<S: Source> Follow<S> {
    pub fn new(runtime: Runtime, source: S, after: S::Cursor, watch: Watch<S::Piece>, place: Hold) -> Self {
        Self { runtime, source, after, watch, phase: Phase::Backlog, ahead: None, counts: true, _place: place }
    }

    pub const fn after(&self) -> S::Cursor {
        self.after
    }

    /// The next piece. Cancel-safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<Told<S>, Error> {
        loop {
            match self.phase {
                Phase::Over => return Ok(Told::Over),
                Phase::Backlog => {
                    let read = match self.read().await {
                        Err(Error::Draining) => return Ok(Told::Shutdown(self.after)),
                        read => read?,
                    };
                    // Nothing is waited for between here and the return: a page that was taken is told.
                    self.after = read.after;
                    match read.rest {
                        Rest::Nothing => self.phase = Phase::Joining,
                        Rest::Some => {}
                        Rest::Much => {
                            let next = self.source.clone().read(self.runtime.clone(), self.after);
                            self.ahead = Some(self.runtime.shared().tasks.spawn(next));
                        }
                    }
                    if let Some(page) = read.page {
                        return Ok(Told::Stored(page));
                    }
                }
                Phase::Joining => {
                    // It was the backlog, not the watcher, that took long; or the store failed: watch anew and read the rest.
                    if self.watch.was_let_go() {
                        self.watch = match self.source.watch(&self.runtime).await {
                            Err(Error::Draining) => return Ok(Told::Shutdown(self.after)),
                            watch => watch?,
                        };
                        self.phase = Phase::Backlog;
                        if self.source.is_gone(&self.runtime).await {
                            self.phase = Phase::Over;
                        }
                    } else {
                        self.phase = Phase::Live;
                    }
                }
                Phase::Live => {
                    if let Some(told) = self.live().await {
                        return Ok(told);
                    }
                }
            }
        }
    }

    /// The next page of the backlog. A dropped call loses at most the reading of it.
    async fn read(&mut self) -> Result<Read<S>, Error> {
        let Some(ahead) = &mut self.ahead else {
            return self.source.clone().read(self.runtime.clone(), self.after).await;
        };
        let page = ahead.await;
        self.ahead = None;
        match page {
            Ok(page) => page,
            Err(why) if why.is_cancelled() => Err(Error::Draining),
            Err(why) => Err(Error::Internal(why.to_string())),
        }
    }

    /// The next live piece that says something new; `None` to look again.
    async fn live(&mut self) -> Option<Told<S>> {
        let stopping = self.runtime.stopping();
        let piece = tokio::select! {
            biased;
            piece = self.watch.next() => piece,
            () = stopping.cancelled() => match self.watch.ready() {
                Some(piece) => Some(piece),
                None => return Some(Told::Shutdown(self.after)),
            },
        };
        let Some(piece) = piece else {
            if self.watch.has_missed() {
                self.phase = Phase::Joining;
                return None;
            }
            // A watch that was not let go lost its bus, which may end before the signal is seen.
            if !self.watch.was_let_go() {
                return Some(Told::Shutdown(self.after));
            }
            self.count_as_dropped();
            self.counts = false;
            return Some(Told::Gap(self.after));
        };
        let heard = self.source.hear(&mut self.after, piece);
        self.phase = heard.then;
        heard.news.map(Told::Live)
    }

    fn count_as_dropped(&self) {
        if self.counts {
            self.runtime.shared().registry.counters.subscribers_dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Who was let go while live, and never came to hear of it: nobody took what was sent.
///
/// Who was let go over a long backlog is not counted: he was slow by no fault of his, and watched anew.
impl<S: Source> Drop for Follow<S> {
    fn drop(&mut self) {
        if self.phase == Phase::Live && self.watch.has_lagged() {
            self.count_as_dropped();
        }
    }
}
