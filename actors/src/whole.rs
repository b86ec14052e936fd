//! What concerns the whole store, or all of one tenant: backups, exports, imports, erasures, figures.
//!
//! What is written out goes through a channel of a few pieces, from a thread that may block: a reader that goes ends
//! it, and so does one that takes nothing for a minute, because an open view holds the room of everything that is
//! changed meanwhile. What changes a tenant runs in a task of its own: its caller may go, it ends all the same.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use raddle_domain::{
    closed::{Closed, Erased, State},
    id::TenantId,
    ports::{Closing, Document, DocumentKind, Figures, Raw, StoreError, View, Write},
    time::UnixMs,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
};

use crate::{
    handle::{Error, PARKING, Runtime, append_error},
    jobs::{Dismiss, Look},
    store::{
        backup::{self, BackupError},
        export::{self, Intake},
    },
    subscription::TenantCursor,
    supervisor::Sweep,
    system::Shared,
    timers::Rearm,
};

/// Pieces that wait for whoever takes them.
const PIECES: usize = 2;
/// How long nobody may take one.
const STALLED: Duration = Duration::from_secs(60);
/// About the bytes of records that are imported with one write.
const PORTION: usize = 256 * 1024;
/// The longest line that is read: far beyond the largest event there can be.
const LINE: usize = 256 << 20;

/// What is written out, as it comes. An error is the last of it, and says that it is not whole.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// What an import brought, by table.
pub type Imported = BTreeMap<String, u64>;

/// Where pieces go.
struct Outlet {
    to: mpsc::Sender<Bytes>,
    shared: Arc<Shared>,
}

impl Outlet {
    /// Waits until the piece is taken. Whether somebody did.
    fn put(&self, piece: Bytes) -> Result<(), Error> {
        let sent = Handle::current().block_on(async {
            tokio::select! {
                sent = tokio::time::timeout(STALLED, self.to.send(piece)) => sent.is_ok_and(|sent| sent.is_ok()),
                () = self.shared.stopping.cancelled() => false,
            }
        });
        match sent {
            true => Ok(()),
            false if self.shared.stopping.is_cancelled() => Err(Error::Draining),
            false => Err(Error::Busy { what: "the reader", retry_after: Duration::ZERO }),
        }
    }
}

fn backup_error(error: BackupError) -> Error {
    match error {
        BackupError::Store(error) => error.into(),
        other => Error::Store(StoreError::Unavailable(other.to_string())),
    }
}

impl Runtime {
    /// A backup of everything, as one commit left it, while commits go on. It ends with an error where it could not
    /// be finished; one without its end is refused by whoever restores it. One at a time.
    ///
    /// As long as it goes on the database grows by what is changed meanwhile.
    pub fn backup(&self) -> Result<Pieces, Error> {
        let place = self.long_view()?;
        let at = self.shared().clock.now();
        Ok(self.written(move |view, outlet| {
            let _place = place;
            let mut gone = None;
            let written = backup::write(view, env!("CARGO_PKG_VERSION"), at, |piece| {
                outlet.put(piece).map_err(|error| {
                    gone = Some(error);
                    BackupError::Gone
                })
            });
            match (written, gone) {
                (Ok(summary), _) => {
                    let (records, damaged) = (summary.records.values().sum::<u64>(), summary.damaged.len());
                    tracing::info!(records, bytes = summary.bytes, damaged, sha256 = summary.sha256, "backed up");
                    Ok(())
                }
                (Err(_), Some(gone)) => Err(gone),
                (Err(error), None) => Err(backup_error(error)),
            }
        }))
    }

    /// Everything of one tenant as lines of JSON, as one commit left it. See [`export`].
    pub fn export_tenant(&self, tenant: TenantId) -> Result<Pieces, Error> {
        let place = self.long_view()?;
        let at = self.shared().clock.now();
        Ok(self.written(move |view, outlet| {
            let _place = place;
            export::write(view, tenant, at, env!("CARGO_PKG_VERSION"), |piece| outlet.put(piece.into())).map(drop)
        }))
    }

    /// A place for a view that is open for as long as somebody reads.
    fn long_view(&self) -> Result<OwnedSemaphorePermit, Error> {
        let busy = |_| Error::Busy { what: "the list of backups and exports", retry_after: Duration::from_secs(60) };
        self.shared().backups.clone().try_acquire_owned().map_err(busy)
    }

    /// What `write` puts out, from a view on a thread that may block.
    fn written(&self, write: impl FnOnce(&dyn View, &Outlet) -> Result<(), Error> + Send + 'static) -> Pieces {
        let (to, pieces) = mpsc::channel(PIECES);
        let shared = self.shared().clone();
        let written = self.shared().tasks.blocking(move || {
            let store = shared.store.clone();
            let outlet = Outlet { to, shared };
            let done = store.view().map_err(Error::from).and_then(|view| write(&*view, &outlet));
            done.inspect_err(|error| tracing::warn!(%error, "a backup or export was not finished"))
        });
        // What was not finished, for whatever reason, is not to look whole.
        Box::pin(stream::unfold((pieces, Some(written)), |(mut pieces, mut written)| async move {
            if let Some(piece) = pieces.recv().await {
                return Some((Ok(piece), (pieces, written)));
            }
            match written.take()?.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some((Err(error), (pieces, written))),
                Err(why) => Some((Err(Error::Internal(why.to_string())), (pieces, written))),
            }
        }))
    }

    /// Brings an export in, for a tenant that has nothing yet; what was brought in, by table. Until all of it is there
    /// and is what was exported, nothing of it is seen; where it is not, nothing of it stays.
    pub async fn import_tenant(
        &self,
        tenant: TenantId,
        lines: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Imported, Error> {
        let _place = self.admit(tenant)?;
        let runtime = self.clone();
        self.to_the_end(async move {
            runtime.wrote(Write::Close { tenant, to: Closing::Import, at: runtime.now() }).await?;
            let imported = runtime.take_in(tenant, lines).await;
            if let Err(error) = &imported {
                tracing::warn!(%tenant, %error, "an import is taken back");
                runtime.undo(tenant).await?;
            }
            imported
        })
        .await
    }

    async fn take_in(
        &self,
        tenant: TenantId,
        lines: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Imported, Error> {
        let mut intake = Intake::new(tenant);
        let mut lines = std::pin::pin!(lines);
        let (mut rest, mut searched) = (Vec::new(), 0);
        let (mut records, mut size) = (Vec::new(), 0);
        let mut cursors = Vec::new();
        while let Some(piece) = lines.next().await {
            let bad = |intake: &Intake, why: String| Error::BadExport { line: intake.lines + 1, why };
            rest.extend_from_slice(&piece.map_err(|why| bad(&intake, format!("it did not arrive: {why}")))?);
            let mut from = 0;
            while let Some(end) = rest[searched..].iter().position(|byte| *byte == b'\n').map(|at| searched + at) {
                let raw = intake.line(&rest[from..end]);
                let raw = raw.map_err(|why| Error::BadExport { line: intake.lines, why })?;
                (from, searched) = (end + 1, end + 1);
                let Some(raw) = raw else { continue };
                if let Some(cursor) = cursor_of(&raw) {
                    // Where hooks stand here is not where they stood there.
                    cursors.push(cursor);
                    continue;
                }
                size += 64 + raw.key.len() + raw.value.len();
                records.push(raw);
                if size >= PORTION {
                    size = 0;
                    self.wrote(Write::Import { tenant, records: std::mem::take(&mut records) }).await?;
                }
            }
            rest.drain(..from);
            searched = rest.len();
            if rest.len() > LINE {
                return Err(bad(&intake, format!("it is longer than {LINE} bytes")));
            }
        }
        let line = intake.lines + 1;
        if !rest.is_empty() {
            return Err(Error::BadExport { line, why: "it has no end: the export is cut off".to_owned() });
        }
        let (position, seq) = intake.feed;
        let imported = intake.end().map_err(|why| Error::BadExport { line, why })?;
        if !records.is_empty() {
            self.wrote(Write::Import { tenant, records }).await?;
        }
        let shared = self.shared();
        let documents = shared.hooks.adopt(tenant, TenantCursor { position, seq }, &cursors);
        self.wrote(Write::Open { tenant, documents }).await?;
        // What it owes goes on, and what it waits for is waited for.
        shared.supervisor.do_send(Sweep);
        shared.timers.do_send(Rearm(UnixMs(0)));
        shared.jobs.do_send(Look);
        Ok(imported)
    }

    /// Removes every record of a tenant, and gives the proof. From its first commit on nothing of the tenant is seen
    /// or stored, for ever, unless it is [readmitted](Self::readmit_tenant); a process that ends in the middle goes on
    /// at the next start. A second call gives the same receipt.
    ///
    /// The pages that held the records are free, not overwritten: what is on the disk goes when they are used again.
    pub async fn erase_tenant(&self, tenant: TenantId) -> Result<Erased, Error> {
        let _place = self.admit(tenant)?;
        let runtime = self.clone();
        self.to_the_end(async move { runtime.erase(tenant).await }).await
    }

    async fn erase(&self, tenant: TenantId) -> Result<Erased, Error> {
        self.wrote(Write::Close { tenant, to: Closing::Erase, at: self.now() }).await?;
        // Whoever speaks for it is heard no more, wherever he is.
        self.shared().tenants.forget(tenant);
        self.dismiss(tenant).await;
        while self.wrote(Write::Sweep { tenant, at: self.now() }).await? > 0 {}
        // What was being loaded, or begun, when it was closed.
        self.dismiss(tenant).await;
        let receipt = self.erasure(tenant).await?;
        receipt.ok_or_else(|| Error::Internal("a tenant was erased and there is no receipt".to_owned()))
    }

    /// Ends what is loaded of a tenant and the runs of its jobs, and forgets what is known of it.
    async fn dismiss(&self, tenant: TenantId) {
        let shared = self.shared();
        let parked = shared.registry.of(tenant).into_iter().map(|actor| {
            let (done, parked) = oneshot::channel();
            actor.park(done);
            parked
        });
        let mut gone: Vec<_> = parked.collect();
        let (done, jobs) = oneshot::channel();
        shared.jobs.do_send(Dismiss(tenant, done));
        gone.push(jobs);
        let gone = futures_util::future::join_all(gone);
        if tokio::time::timeout(PARKING, gone).await.is_err() {
            tracing::warn!(%tenant, "some work of a tenant that is erased is slow to end; it can save nothing");
        }
        shared.hooks.forget(tenant);
    }

    async fn undo(&self, tenant: TenantId) -> Result<(), Error> {
        self.wrote(Write::Close { tenant, to: Closing::Undo, at: self.now() }).await?;
        while self.wrote(Write::Sweep { tenant, at: self.now() }).await? > 0 {}
        Ok(())
    }

    /// Lets a tenant that was erased be used again: its name, for nothing of it is left. Its receipt stays.
    pub async fn readmit_tenant(&self, tenant: TenantId) -> Result<(), Error> {
        self.shared().hooks.forget(tenant);
        self.wrote(Write::Open { tenant, documents: Vec::new() }).await.map(drop)
    }

    /// The receipt of a tenant that was erased.
    pub async fn erasure(&self, tenant: TenantId) -> Result<Option<Erased>, Error> {
        Ok(self.closed().await?.into_iter().find(|note| note.tenant == tenant).and_then(|note| note.receipt()))
    }

    /// The receipts of all tenants that were erased, and have not been readmitted since.
    pub async fn erasures(&self) -> Result<Vec<Erased>, Error> {
        let notes = self.closed().await?.into_iter();
        Ok(notes.filter(|note| note.state == State::Erased).filter_map(|note| note.receipt()).collect())
    }

    /// The tenants that are erased, or are being erased, and have not been readmitted since.
    pub async fn erased_tenants(&self) -> Result<Vec<TenantId>, Error> {
        let notes = self.closed().await?.into_iter();
        Ok(notes.filter(|note| matches!(note.state, State::Erasing | State::Erased)).map(|note| note.tenant).collect())
    }

    /// What of a tenant counts against its quotas. Cheap, but for the first time after a start.
    pub async fn tenant_figures(&self, tenant: TenantId) -> Result<Figures, Error> {
        if let Some(figures) = self.shared().store.known_figures(tenant) {
            return Ok(figures);
        }
        let store = self.shared().store.clone();
        let counted = self.shared().tasks.blocking(move || store.figures(tenant)).await;
        Ok(counted.map_err(|why| Error::Internal(why.to_string()))??)
    }

    async fn closed(&self) -> Result<Vec<Closed>, Error> {
        let notes = self.read(|view| view.documents(TenantId::SYSTEM, DocumentKind::Closed)).await?;
        let read = |note: &Document| serde_json::from_slice(&note.json).map_err(|why| Error::Internal(why.to_string()));
        notes.iter().map(read).collect()
    }

    /// Goes on with what the last process did not finish.
    pub(crate) async fn finish_closing(self) {
        let notes = match self.closed().await {
            Ok(notes) => notes,
            Err(error) => return tracing::error!(%error, "it is not known what was being imported or erased"),
        };
        for Closed { tenant, state, .. } in notes {
            let done = match state {
                State::Importing | State::Undoing => {
                    tracing::warn!(%tenant, "an import was not finished; it is taken back");
                    self.undo(tenant).await
                }
                State::Erasing => {
                    tracing::info!(%tenant, "a tenant is being erased; going on");
                    self.erase(tenant).await.map(drop)
                }
                State::Erased | State::Reopened => Ok(()),
            };
            if let Err(error) = done {
                tracing::error!(%tenant, %error, "it goes on at the next start");
            }
        }
    }

    async fn wrote(&self, write: Write) -> Result<u64, Error> {
        self.shared().store_handle.write(write).await.map_err(append_error)
    }

    /// Runs it to its end, whether or not its caller still waits.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        if self.shared().draining.load(SeqCst) {
            return Err(Error::Draining);
        }
        match self.shared().tasks.spawn(work).await {
            Ok(done) => done,
            Err(why) if why.is_cancelled() => Err(Error::Draining),
            Err(why) => Err(Error::Internal(why.to_string())),
        }
    }
}

/// The document that a record is, if it is the cursor of a hook.
fn cursor_of(raw: &Raw) -> Option<Document> {
    export::document(raw).filter(|document| document.kind == DocumentKind::HookCursor)
}
