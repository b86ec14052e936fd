//! One attempt of one tool call: run as a tokio task, told to its thread through an outbox.
//!
//! Absent on purpose: whether it may run, and what becomes of an outcome that nobody knows; the thread's machine
//! decides both.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use raddle_domain::{
    command::ToolReport,
    policy::{Policy, SandboxMode, narrowest},
    ports::{Invocation, LogStore, Output, Saying, StoreError, ToolEnd, Tools},
    record::EffectClass,
    thread::Due,
};
use tokio::{task::AbortHandle, time::Instant};
use tracing::{Instrument, Span};

use crate::{disk, stage::Tasks, system::Shared};

/// What the tool says.
pub(crate) type Outbox = crate::outbox::Outbox<(), ToolEnd>;

/// A running attempt. Dropping it gives the tool up.
pub(crate) struct ToolTask {
    pub due: Due,
    pub outbox: Arc<Outbox>,
    /// When something it said was last saved.
    pub spoke: Option<Instant>,
    task: AbortHandle,
}

impl Drop for ToolTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Output for Outbox {
    fn say(&self, text: String) -> Saying<'_> {
        Box::pin(self.say((), text))
    }
}

impl ToolTask {
    /// Starts the attempt; `wake` is called when the outbox has something and the thread does not know it.
    pub fn start(
        due: Due,
        class: EffectClass,
        invocation: Invocation,
        shared: &Arc<Shared>,
        span: Span,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let outbox = Arc::new(Outbox::new(wake));
        let told = outbox.clone();
        let (store, tools, registry) = (shared.store.clone(), shared.tools.clone(), shared.registry.clone());
        let tasks = shared.tasks.clone();
        let door = shared.gates.tools.door(&shared.tenants.account(invocation.key.tenant));
        let work = async move {
            let _place = door.enter(1).await;
            let began = Instant::now();
            let invocation = confined(invocation, &tasks, store).await;
            let end = attempt(due, class, invocation, &*tools, told.clone()).await;
            registry.counters.tool.took(began.elapsed());
            match &end {
                ToolEnd::Done(_) => {}
                ToolEnd::Failed(_) => drop(Span::current().record("error", "failed")),
                ToolEnd::NotDone => drop(Span::current().record("error", "not_done")),
                ToolEnd::Unknown(_) => drop(Span::current().record("error", "unknown")),
            }
            told.end(end);
        };
        let task = shared.tasks.spawn(work.instrument(span));
        Self { due, outbox, spoke: None, task: task.abort_handle() }
    }

    /// Takes what it has said.
    pub fn take(&mut self) -> Option<ToolReport> {
        let (text, end) = self.outbox.take()?;
        self.spoke = Some(Instant::now());
        let said = text.into_iter().map(|((), text)| text).collect();
        Some(ToolReport { operation: self.due.operation, attempt: self.due.attempt, said, end })
    }
}

/// The invocation with what the tenant says of the sandbox and of paths. Where that cannot be read, nothing may be
/// changed.
async fn confined(mut invocation: Invocation, tasks: &Tasks, store: Arc<dyn LogStore>) -> Invocation {
    let tenant = invocation.key.tenant;
    let read = tasks.blocking(move || Ok::<_, StoreError>(disk::rules(&*store.view()?, tenant)?.policy));
    let policy = match read.await {
        Ok(Ok(policy)) => policy,
        _ => Policy { sandbox: Some(SandboxMode::ReadOnly), ..Policy::default() },
    };
    if let Some(mode) = narrowest([&policy].into_iter().chain(&invocation.policy)) {
        invocation.policy.get_or_insert_default().sandbox = Some(mode);
    }
    if !policy.rules.is_empty() {
        invocation.policy.get_or_insert_default().rules.extend(policy.rules);
    }
    invocation
}

async fn attempt(
    due: Due,
    class: EffectClass,
    invocation: Invocation,
    tools: &dyn Tools,
    output: Arc<Outbox>,
) -> ToolEnd {
    if due.reconcile {
        return caught(async { tools.reconcile(invocation).await }).await;
    }
    match caught(async { tools.run(invocation.clone(), output).await }).await {
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
