//! `quotas.*`: what holds for tenants whose own record does not say otherwise.

use std::num::NonZeroU32;

use raddle_domain::tenant::Quotas;

use super::{ConfigError, Keys};

pub(super) fn quotas(keys: &mut Keys) -> Result<Quotas, ConfigError> {
    // 0 is no bound, as nothing is.
    let mut bound =
        |key: &str| Ok::<_, ConfigError>(Some(keys.number(key, 0, 0, u64::MAX)?).filter(|bound| *bound > 0));
    Ok(Quotas {
        threads: bound("quotas.threads")?,
        loaded_threads: bound("quotas.loaded_threads")?,
        active_turns: bound("quotas.active_turns")?,
        queued_prompts: bound("quotas.queued_prompts")?,
        subscribers: bound("quotas.subscribers")?,
        stored_bytes: bound("quotas.stored_bytes")?,
        requests_per_second: NonZeroU32::new(keys.count("quotas.requests_per_second", 0, 0)?),
        request_burst: NonZeroU32::new(keys.count("quotas.request_burst", 0, 0)?),
    })
}
