//! Work that waits for a disk, kept away from the threads that must not wait.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::task::AbortOnDropHandle;

/// Runs what waits for a disk where waiting blocks nobody. Given up, it is not begun if it has not been; a panic in
/// it is one here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match AbortOnDropHandle::new(tokio::task::spawn_blocking(work)).await {
        Ok(done) => done,
        Err(lost) => match lost.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime goes down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Asks work that has begun to end soon. Work looks at it where it may stop.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Asks when it is dropped: with the future of a call that is given up.
    pub(super) fn on_drop(&self) -> AskOnDrop {
        AskOnDrop(self.clone())
    }
}

pub(super) struct AskOnDrop(Stop);

impl Drop for AskOnDrop {
    fn drop(&mut self) {
        self.0.ask();
    }
}
