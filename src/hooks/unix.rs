//! Lines to whoever listens on a Unix socket.
//!
//! Each batch has a connection of its own: lines, then the end of our half, then we wait for the other side to close.
//! It counts as taken when the other side closed after it had read everything, which the kernel tells apart from a
//! close, or a death, with lines unread. So a reader acknowledges by reading to the end and closing, and needs no
//! protocol; what it reads and loses after that is its own.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use raddle_domain::ports::{HookBatch, Sink, SinkError, SinkWork};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::{lines, unavailable};

/// How long a reader may take for a batch.
const TAKES: Duration = Duration::from_secs(30);

/// The sink.
#[derive(Debug)]
pub struct Unix(Arc<PathBuf>);

impl Unix {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(path.into()))
    }
}

impl Sink for Unix {
    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let path = self.0.clone();
        Box::pin(async move {
            let told = timeout(TAKES, tell(&path, &lines(&batch))).await;
            told.unwrap_or_else(|_| Err(unavailable("the reader of the socket did not read it in time")))
        })
    }
}

async fn tell(path: &PathBuf, lines: &[u8]) -> Result<(), SinkError> {
    let nobody = |why: io::Error| unavailable(format!("nobody listens on the socket: {}", why.kind()));
    let mut stream = UnixStream::connect(path).await.map_err(nobody)?;
    let unread = |why: io::Error| unavailable(format!("the reader of the socket went away: {}", why.kind()));
    stream.write_all(lines).await.map_err(unread)?;
    stream.shutdown().await.map_err(unread)?;
    // Whatever it says is no concern of ours, but its end is.
    let mut said = [0; 1024];
    while stream.read(&mut said).await.map_err(unread)? > 0 {}
    Ok(())
}
