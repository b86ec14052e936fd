//! What of a tenant counts against its quotas, as it is stored: read from its rows and logs.

use raddle_domain::{
    id::{TenantId, ThreadKey},
    ports::{LogStore, StoreError},
    record::Thread,
};

/// What of a tenant counts against its quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    pub threads: u64,
    /// Prompts that wait in inboxes.
    pub queued: u64,
    /// Bytes of events, as they are stored.
    pub bytes: u64,
}

/// Reads all of the tenant's threads. Blocks.
pub(crate) fn figures(store: &dyn LogStore, tenant: TenantId) -> Result<Figures, StoreError> {
    const PAGE: usize = 256;
    const BYTES: usize = 1 << 20;
    let view = store.view()?;
    let (mut figures, mut cursor) = (Figures::default(), None);
    loop {
        let page = view.list(tenant, cursor, PAGE)?;
        for listed in &page {
            figures.threads += 1;
            let Ok(row) = &listed.row else { continue };
            figures.queued += serde_json::from_slice::<Thread>(&row.view).map_or(0, |thread| thread.queued.into());
            let (key, mut after) = (ThreadKey { tenant, thread: listed.place.thread }, 0);
            while after < row.head.last_seq {
                let chunks = view.events(key, after, usize::MAX, BYTES)?;
                let Some(last) = chunks.last() else { break };
                after = last.first + last.events.len() as u64 - 1;
                let said = chunks.iter().flat_map(|chunk| &chunk.events);
                figures.bytes += said.map(|event| (event.name.len() + event.json.len()) as u64).sum::<u64>();
            }
        }
        cursor = page.last().map(|listed| listed.place);
        if page.len() < PAGE {
            return Ok(figures);
        }
    }
}
