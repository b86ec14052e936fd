//! Lines to the server's own stdout, behind the one that says where it listens, or before it.

use std::{
    io::{self, Write},
    sync::Arc,
};

use raddle_domain::ports::{HookBatch, Sink, SinkWork};
use tokio::sync::Mutex;

use super::{blocking, lines, unavailable};

/// The sink. Whoever reads must go on reading: a full pipe is waited for.
#[derive(Debug, Default)]
pub struct Stdout(Arc<Mutex<()>>);

impl Sink for Stdout {
    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let lock = self.0.clone();
        Box::pin(async move {
            let lines = lines(&batch);
            blocking(lock.lock_owned().await, move |_| {
                let mut out = io::stdout().lock();
                let written = out.write_all(&lines).and_then(|()| out.flush());
                written.map_err(|why| unavailable(format!("stdout cannot be written: {}", why.kind())))
            })
            .await
        })
    }
}
