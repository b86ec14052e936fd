//! Watching many runs as one stream: the tenant's feed, of which others are left out.

use std::{collections::HashSet, sync::Arc};

use raddle_domain::id::{RunId, TenantId, ThreadId};

use crate::{
    handle::{Error, Runtime},
    subscription::{TenantCursor, TenantPage, TenantSubscription, Wanted},
};

/// Pieces of the feed that a page is looked for in. One that is empty then is not the end: its cursor has moved.
const LOOKED_THROUGH: usize = 256;

impl Runtime {
    /// Watches some runs, or all of a tenant's, from right after `after`. Without it, some runs are told from their
    /// beginning, and all of them from now on. A run that there is not is refused.
    pub async fn subscribe_runs(
        &self,
        tenant: TenantId,
        after: Option<TenantCursor>,
        runs: Option<Vec<RunId>>,
    ) -> Result<TenantSubscription, Error> {
        let (after, wanted) = self.wanted_runs(tenant, after, runs).await?;
        self.subscribe_feed(tenant, after, wanted).await
    }

    /// Stored events of the same, at most `limit`, and where to go on.
    pub async fn runs_events(
        &self,
        tenant: TenantId,
        after: Option<TenantCursor>,
        runs: Option<Vec<RunId>>,
        limit: usize,
    ) -> Result<TenantPage, Error> {
        let (after, wanted) = self.wanted_runs(tenant, after, runs).await?;
        let mut page = self.feed_events(tenant, after, wanted.clone(), limit).await?;
        // Others may have had much to say meanwhile.
        for _ in 0..LOOKED_THROUGH {
            if !page.events.is_empty() || !page.unavailable.is_empty() || !page.more {
                break;
            }
            page = self.feed_events(tenant, Some(page.next), wanted.clone(), limit).await?;
        }
        Ok(page)
    }

    async fn wanted_runs(
        &self,
        tenant: TenantId,
        after: Option<TenantCursor>,
        runs: Option<Vec<RunId>>,
    ) -> Result<(Option<TenantCursor>, Wanted), Error> {
        let Some(runs) = runs else { return Ok((after, Wanted::Runs)) };
        let mut logs: HashSet<ThreadId> = HashSet::new();
        for run in runs {
            self.run(tenant, run).await?;
            logs.insert(run.log(tenant).thread);
        }
        Ok((Some(after.unwrap_or_default()), Wanted::These(Arc::new(logs))))
    }
}
