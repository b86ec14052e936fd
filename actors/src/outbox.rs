//! What something at work has said and its thread has not yet taken.
//!
//! This is where streamed text coalesces: whatever comes while the thread's last append is under way is one delta of
//! the next. It is bounded, so whoever speaks faster than the disk has to wait.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Text that may wait before the speaker must.
const ROOM: usize = 64 * 1024;
/// Text that is worth saving without waiting for more.
pub(crate) const DELTA_BYTES: usize = 4 * 1024;

/// Text by kind, in order, and the end, if it has come.
pub(crate) type Taken<K, E> = (Vec<(K, String)>, Option<E>);

/// Text of the kinds `K`, in order, and then an end.
pub(crate) struct Outbox<K, E> {
    said: Mutex<Said<K, E>>,
    room: Notify,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Said<K, E> {
    text: Vec<(K, String)>,
    bytes: usize,
    end: Option<E>,
}

impl<K, E> Default for Said<K, E> {
    fn default() -> Self {
        Self { text: Vec::new(), bytes: 0, end: None }
    }
}

impl<K: PartialEq + Send, E: Send> Outbox<K, E> {
    /// `wake` is called when there is something to take and the thread does not know it.
    pub fn new(wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { said: Mutex::default(), room: Notify::new(), wake }
    }

    fn said(&self) -> MutexGuard<'_, Said<K, E>> {
        // Nothing below can leave it half changed.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds text, once there is room for it. The thread is woken by the first text since it took the last, and by
    /// enough of it to be saved at once.
    pub async fn say(&self, kind: K, text: String) {
        if !text.is_empty() {
            let bytes = text.len();
            self.put(kind, text, bytes).await;
        }
    }

    /// Adds what has no text of its own and takes `bytes`. Of several in a row that are equal, one is kept.
    pub async fn note(&self, kind: K, bytes: usize) {
        self.put(kind, String::new(), bytes.max(1)).await;
    }

    async fn put(&self, kind: K, text: String, bytes: usize) {
        loop {
            let room = self.room.notified();
            {
                let mut said = self.said();
                if said.bytes < ROOM {
                    let before = said.bytes;
                    said.bytes += bytes;
                    match said.text.last_mut() {
                        Some((last, said)) if *last == kind => said.push_str(&text),
                        _ => said.text.push((kind, text)),
                    }
                    let wakes = before == 0 || (before < DELTA_BYTES && said.bytes >= DELTA_BYTES);
                    drop(said);
                    if wakes {
                        (self.wake)();
                    }
                    return;
                }
            }
            room.await;
        }
    }

    pub fn end(&self, end: E) {
        self.said().end = Some(end);
        (self.wake)();
    }

    /// Bytes that wait, and whether the end has come.
    pub fn waiting(&self) -> (usize, bool) {
        let said = self.said();
        (said.bytes, said.end.is_some())
    }

    /// Takes everything, if there is anything.
    pub fn take(&self) -> Option<Taken<K, E>> {
        let Said { text, end, bytes: _ } = std::mem::take(&mut *self.said());
        self.room.notify_one();
        (!text.is_empty() || end.is_some()).then_some((text, end))
    }
}
