//! One attempt of one tool call: run as a tokio task, told to its thread as a command.
//!
//! Absent on purpose: whether it may run, and what becomes of an outcome that nobody knows; the thread's machine
//! decides both.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use raddle_domain::{
    ports::{Invocation, ToolEnd, Tools},
    record::EffectClass,
    thread::Due,
};
use tokio::{runtime::Handle, task::AbortHandle};

/// A running attempt. Dropping it gives the tool up.
pub(crate) struct ToolTask {
    pub due: Due,
    task: AbortHandle,
}

impl Drop for ToolTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ToolTask {
    /// Starts the attempt on `runtime`; `done` is called with its end, once.
    pub fn start(
        due: Due,
        class: EffectClass,
        invocation: Invocation,
        tools: Arc<dyn Tools>,
        runtime: &Handle,
        done: impl FnOnce(ToolEnd) + Send + 'static,
    ) -> Self {
        let task = runtime.spawn(async move { done(attempt(due, class, invocation, &*tools).await) });
        Self { due, task: task.abort_handle() }
    }
}

async fn attempt(due: Due, class: EffectClass, invocation: Invocation, tools: &dyn Tools) -> ToolEnd {
    if due.reconcile {
        return caught(async { tools.reconcile(invocation).await }).await;
    }
    match caught(async { tools.run(invocation.clone()).await }).await {
        ToolEnd::Unknown(_) if class == EffectClass::Reconcilable => {
            caught(async { tools.reconcile(invocation).await }).await
        }
        end => end,
    }
}

/// A tool that panics ended somewhere, and nobody knows where.
async fn caught(tool: impl Future<Output = ToolEnd>) -> ToolEnd {
    let end = AssertUnwindSafe(tool).catch_unwind().await;
    end.unwrap_or_else(|_| ToolEnd::Unknown("the tool panicked; this is a defect of it".to_owned()))
}
