//! Where hooks' events go. When, and in what order, is for `raddle-actors`; here is how.
//!
//! Every sink is told the same about an event, as one line of JSON: `{cursor, at, tenant, hook, event}`, where `event`
//! is the record as it is stored, and `cursor` names its place: the same for the same event whenever it is told, and
//! good for `GET /v1/events?after=`.
//!
//! Absent on purpose: retries, which are the hook's; words about a failure that name a path, a URL or a secret: they
//! are shown to tenants.

mod jsonl;
mod stdout;
mod unix;
mod webhook;

use raddle_actors::TenantCursor;
use raddle_domain::{
    id::TenantId,
    ports::{HookBatch, HookEvent, SinkError},
};

pub use self::{jsonl::Jsonl, stdout::Stdout, unix::Unix, webhook::Webhook};
use crate::gateway::tenant_cursor;

/// What every line begins with: how a file tells a line that was torn from one that is not ours.
const BEGINNING: &str = "{\"cursor\":\"";

/// The place of an event, as text.
fn cursor(tenant: TenantId, event: &HookEvent) -> String {
    tenant_cursor(tenant, TenantCursor { position: event.position, seq: event.seq })
}

/// What is told about an event. The stored record is copied, not parsed.
fn message(batch: &HookBatch, event: &HookEvent) -> Vec<u8> {
    // None of these holds a character that JSON would have to escape.
    let (cursor, at, tenant, hook) = (cursor(batch.tenant, event), batch.at, batch.tenant, &batch.hook);
    let head = format!("{BEGINNING}{cursor}\",\"at\":\"{at}\",\"tenant\":\"{tenant}\",\"hook\":\"{hook}\",\"event\":");
    [head.as_bytes(), &event.event.json, b"}"].concat()
}

/// A line for each event.
fn lines(batch: &HookBatch) -> Vec<u8> {
    let mut lines = Vec::new();
    for event in &batch.events {
        lines.extend(message(batch, event));
        lines.push(b'\n');
    }
    lines
}

fn unavailable(why: impl Into<String>) -> SinkError {
    SinkError::Unavailable { why: why.into(), retry_after: None }
}

/// Runs what blocks, with `guard` held until it is done: who gives up waiting for it must not start it beside itself.
async fn blocking<G: Send + 'static>(
    guard: G,
    work: impl FnOnce(&mut G) -> Result<(), SinkError> + Send + 'static,
) -> Result<(), SinkError> {
    let work = move || {
        let mut guard = guard;
        work(&mut guard)
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|why| Err(unavailable(why.to_string())))
}

#[cfg(test)]
mod tests;
