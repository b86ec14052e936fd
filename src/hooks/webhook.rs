//! A POST for each event, signed as Standard Webhooks has it.
//!
//! One event, one message: its id is made of the event's place, so it is the same however often it is sent, and
//! whoever keeps the ids that it has seen gets every event once. A receiver answers with 2xx when it has the event; a
//! redirect and most of 4xx say that it never will; anything else is tried again.

use std::{sync::Arc, time::Duration};

use raddle_domain::ports::{HookBatch, Sink, SinkError, SinkWork};
use secrecy::{ExposeSecret, SecretString};

use super::{cursor, message, unavailable};
use crate::{
    egress::{Answer, Egress, Outgoing},
    webhook::Secrets,
};

/// The most that is read of an answer, of which only the status counts.
const ANSWER_BYTES: usize = 16 << 10;

/// The sink.
#[derive(Debug, Clone)]
pub struct Webhook {
    egress: Egress,
    /// May hold a token in its path.
    url: Arc<SecretString>,
    secrets: Secrets,
    timeout: Duration,
}

impl Webhook {
    pub fn new(egress: Egress, url: SecretString, secrets: Secrets, timeout: Duration) -> Self {
        Self { egress, url: Arc::new(url), secrets, timeout }
    }
}

impl Sink for Webhook {
    fn most(&self) -> usize {
        1
    }

    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let sink = self.clone();
        Box::pin(async move {
            for event in &batch.events {
                let body = message(&batch, event);
                let id = format!("evt_{}", cursor(batch.tenant, event));
                let mut headers = vec![("content-type", "application/json".to_owned())];
                headers.extend(sink.secrets.headers(&id, batch.at.0 / 1000, &body));
                let post = Outgoing::post(sink.url.expose_secret(), headers, body.into());
                let outgoing = Outgoing { timeout: sink.timeout, read: ANSWER_BYTES, ..post };
                judge(sink.egress.send(outgoing).await.map_err(|why| unavailable(why.to_string()))?)?;
            }
            Ok(())
        })
    }
}

/// What an answer says about the event.
fn judge(answer: Answer) -> Result<(), SinkError> {
    match answer.status {
        200..=299 => Ok(()),
        300..=399 => Err(SinkError::Rejected(format!("answered {}: redirects are not followed", answer.status))),
        408 | 429 | 500.. => {
            Err(SinkError::Unavailable { why: format!("answered {}", answer.status), retry_after: answer.retry_after })
        }
        status => Err(SinkError::Rejected(format!("answered {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn an_answer_is_taken_at_its_word() {
        let retry_after = Some(Duration::from_secs(3));
        let judged = |status| judge(Answer { status, retry_after, body: Bytes::new() });
        for taken in [200, 202, 204, 299] {
            assert_eq!(judged(taken), Ok(()));
        }
        for later in [408, 429, 500, 502, 503, 504, 599] {
            assert!(matches!(judged(later), Err(SinkError::Unavailable { retry_after: Some(_), .. })), "{later}");
        }
        for never in [301, 302, 307, 308, 400, 401, 403, 404, 405, 410, 413, 422] {
            assert!(matches!(judged(never), Err(SinkError::Rejected(_))), "{never}");
        }
    }
}
