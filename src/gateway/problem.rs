//! What a caller is told when a request does not succeed: RFC 9457 problem documents.
//!
//! Every [`raddle_actors::Error`] becomes a [`Problem`] here and nowhere else, in one match without a
//! catch-all: a new error has to choose its status. Sentences leave the process; causes stay in the log.

use std::{fmt, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use raddle_actors::Error;
use raddle_domain::{
    command::Refused, job::JobRefused, policy::check::BadRule, ports::StoreError, run, tenant::TenantRefused,
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::{
    ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};

use super::observe;
use crate::workspace::NoWorkspace;

/// The media type of every error.
pub const CONTENT_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $code:literal, $title:literal;)*) => {
        /// What went wrong, as clients tell it apart.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code there is.
            pub const ALL: &[Code] = &[$(Self::$name,)*];

            /// The stable word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The same for every problem of this code.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// The status it travels with.
            pub fn status(self) -> StatusCode {
                let status: u16 = match self { $(Self::$name => $status,)* };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    };
}

codes! {
    BadRequest = 400, "bad-request", "The request cannot be read";
    /// A page of another site, or another name than the machine's own, on a server without keys.
    Unauthenticated = 401, "unauthenticated", "Nobody is known by the key";
    /// The key is good, and not for this.
    InsufficientScope = 403, "insufficient-scope", "The key does not allow it";
    TenantSuspended = 403, "tenant-suspended", "The tenant is suspended";
    ForeignOrigin = 403, "foreign-origin", "The request comes from elsewhere";
    /// A rule of the policy.
    Forbidden = 403, "forbidden", "A rule forbids it";
    NotFound = 404, "not-found", "There is no such thing";
    MethodNotAllowed = 405, "method-not-allowed", "The path has no such method";
    TurnOpen = 409, "turn-open", "Another turn is open";
    ThreadArchived = 409, "thread-archived", "The thread is archived";
    TurnNotActive = 409, "turn-not-active", "The turn is not the active one";
    AlreadyDecided = 409, "already-decided", "It is decided already";
    AlreadyPromoted = 409, "already-promoted", "The prompt waits no more";
    Conflict = 409, "conflict", "The state of it does not allow it";
    RunTransitionInvalid = 409, "run-transition-invalid", "The run cannot become that";
    TaskRevMismatch = 409, "task-rev-mismatch", "The task has moved on";
    TaskLeaseRequired = 409, "task-lease-required", "The task is leased";
    TaskLeaseInvalid = 409, "task-lease-invalid", "The lease is not valid";
    TaskTransitionInvalid = 409, "task-transition-invalid", "The task cannot become that";
    WorkspaceEpochStale = 409, "workspace-epoch-stale", "The run works in another workspace by now";
    RollbackBlocked = 409, "rollback-blocked", "Nothing was taken back";
    LimitReached = 409, "limit-reached", "There are as many as there may be";
    InFlight = 409, "in-flight", "The same request is still in flight";
    ThreadDeleted = 410, "thread-deleted", "The thread was deleted";
    PreconditionFailed = 412, "precondition-failed", "It has moved on";
    PreconditionRequired = 428, "precondition-required", "A precondition is needed";
    TooLarge = 413, "too-large", "Too large";
    Invalid = 422, "invalid", "A value is not acceptable";
    UnknownField = 422, "unknown-field", "A field is unknown";
    TaskContractInvalid = 422, "task-contract-invalid", "The task does not fit its contract";
    TaskOutputTargetRequired = 422, "task-output-target-required", "The task does not say where it writes";
    EventReserved = 422, "event-reserved", "Only the runtime writes such an event";
    IdempotencyMismatch = 422, "idempotency-mismatch", "The key belongs to another request";
    BudgetExceeded = 402, "budget-exceeded", "The budget is spent";
    InboxFull = 429, "inbox-full", "The thread's inbox is full";
    /// A bound of the tenant.
    QuotaExceeded = 429, "quota-exceeded", "The tenant has as much as it may";
    RateLimited = 429, "rate-limited", "Too many requests";
    Internal = 500, "internal", "A defect of the server";
    NotImplemented = 501, "not-implemented", "Not built yet";
    Busy = 503, "busy", "The server is busy";
    Draining = 503, "draining", "The server is shutting down";
    StoreUnavailable = 503, "store-unavailable", "The store is not available";
    ThreadUnavailable = 503, "thread-unavailable", "The thread's records cannot be used";
    StorageFull = 507, "storage-full", "The disk is full";
}

/// An answer to a request that did not succeed.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub code: Code,
    /// A sentence for the caller.
    pub detail: String,
    pub retry_after: Option<Duration>,
    /// Named fields beside the standard ones.
    pub extra: Map<String, Value>,
}

/// A problem as it travels. Problems of some codes carry further named fields.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document<'a> {
    /// A stable URI, one per code.
    #[serde(rename = "type")]
    #[schema(example = "https://raddle.dev/problems/turn-open")]
    uri: String,
    title: &'a str,
    status: u16,
    /// Stable, kebab-case: what clients branch on.
    #[schema(schema_with = codes)]
    code: &'a str,
    /// A sentence about this very occurrence.
    detail: &'a str,
    /// The `X-Request-Id` of the reply.
    #[schema(required)]
    request_id: Option<String>,
    #[serde(flatten)]
    #[schema(ignore)]
    extra: &'a Map<String, Value>,
}

/// The codes as the OpenAPI document lists them.
fn codes() -> Object {
    let words = Code::ALL.iter().map(|code| code.as_str());
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build()
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), retry_after: None, extra: Map::new() }
    }

    /// A value that the caller must change; `field` says where it stands.
    pub fn invalid(field: &str, why: impl fmt::Display) -> Self {
        Self::new(Code::Invalid, format!("`{field}` {why}")).with("field", field)
    }

    /// A rule of a policy that cannot be taken; `place` says where its rules stand.
    pub fn bad_rule(place: &str, bad: BadRule) -> Self {
        let BadRule { at, rule, field, why, example } = bad;
        let field = format!("{place}[{at}].{field}");
        let problem = Self::new(Code::Invalid, why).with("field", field).with("rule", rule);
        example.into_iter().fold(problem, |problem, example| problem.with("example", example))
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("no such {what}"))
    }

    /// Something that the API promises and this build does not have.
    pub fn not_built(what: &str) -> Self {
        Self::new(Code::NotImplemented, format!("not built yet: {what}"))
    }

    /// Adds a named field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// Says when it is worth to try again.
    #[must_use]
    pub fn after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }
}

/// A record, or a word of one, as the API writes it everywhere else.
fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let sentence = refused.to_string();
        match refused {
            Refused::TurnOpen { turn } => Problem::new(Code::TurnOpen, sentence).with("active_turn", turn.to_string()),
            Refused::ThreadArchived => Problem::new(Code::ThreadArchived, sentence),
            Refused::TurnNotActive { turn: _, active } => {
                Problem::new(Code::TurnNotActive, sentence).with("active_turn", active.map(|turn| turn.to_string()))
            }
            Refused::Precondition { expected: _, head } => {
                Problem::new(Code::PreconditionFailed, sentence).with("seq", head)
            }
            Refused::InboxFull { limit } => {
                Problem::new(Code::InboxFull, sentence).with("limit", limit).after(Duration::from_secs(5))
            }
            Refused::Quota { limit, max } => Error::Quota { limit, max }.into(),
            Refused::BudgetExceeded(state) => {
                let mut problem = Problem::new(Code::BudgetExceeded, sentence);
                if let Value::Object(fields) = json(&state) {
                    problem.extra.extend(fields);
                }
                problem
            }
            Refused::Invalid { field, why: _ } => Problem::new(Code::Invalid, sentence).with("field", field),
            Refused::TooLarge { field, size, limit } => {
                Problem::new(Code::TooLarge, sentence).with("field", field).with("size", size).with("limit", limit)
            }
            Refused::NothingToSteer => Problem::new(Code::TurnNotActive, sentence).with("active_turn", Value::Null),
            Refused::NothingToEdit | Refused::NothingToCompact => Problem::new(Code::Conflict, sentence),
            Refused::NotQueued { .. } | Refused::NoCheckpoint { .. } => Problem::new(Code::NotFound, sentence),
            // Nobody's word was the first: there is no decision to name.
            Refused::Expired { at } => {
                Problem::new(Code::AlreadyDecided, sentence).with("decision", Value::Null).with("expires_at", json(&at))
            }
            Refused::NotPending { .. } | Refused::NotAsked { .. } | Refused::NotUncertain { .. } => {
                Problem::new(Code::AlreadyDecided, sentence)
            }
        }
    }
}

impl From<NoWorkspace> for Problem {
    fn from(why: NoWorkspace) -> Self {
        match why {
            NoWorkspace::Empty
            | NoWorkspace::Character
            | NoWorkspace::TooLong
            | NoWorkspace::Upwards
            | NoWorkspace::Outside
            | NoWorkspace::Reserved
            | NoWorkspace::NotADirectory
            | NoWorkspace::Io(_) => Problem::invalid("workspace", why),
        }
    }
}

impl From<JobRefused> for Problem {
    fn from(refused: JobRefused) -> Self {
        let sentence = refused.to_string();
        match refused {
            JobRefused::Not { what: _, status } => {
                Problem::new(Code::Conflict, sentence).with("job_status", json(&status))
            }
            JobRefused::CommandRuns | JobRefused::NotYours | JobRefused::NotDue => {
                Problem::new(Code::Conflict, sentence)
            }
            JobRefused::Precondition { expected: _, head } => {
                Problem::new(Code::PreconditionFailed, sentence).with("seq", head)
            }
            JobRefused::Invalid { field, why: _ } => Problem::new(Code::Invalid, sentence).with("field", field),
            JobRefused::TooLarge { field, size, limit } => {
                Problem::new(Code::TooLarge, sentence).with("field", field).with("size", size).with("limit", limit)
            }
            JobRefused::Forbidden { reason: _, rule } => Problem::new(Code::Forbidden, sentence).with("rule", rule),
        }
    }
}

impl From<run::Refused> for Problem {
    fn from(refused: run::Refused) -> Self {
        use run::Refused;
        let sentence = refused.to_string();
        match refused {
            Refused::Precondition { expected: _, head } => {
                Problem::new(Code::PreconditionFailed, sentence).with("revision", head)
            }
            Refused::PreconditionRequired => Problem::new(Code::PreconditionRequired, sentence),
            Refused::RunTransition { from, to } => Problem::new(Code::RunTransitionInvalid, sentence)
                .with("current_status", json(&from))
                .with("requested_status", json(&to)),
            Refused::TaskRev { expected: _, task_rev } => {
                Problem::new(Code::TaskRevMismatch, sentence).with("task_rev", task_rev)
            }
            Refused::LeaseRequired => Problem::new(Code::TaskLeaseRequired, sentence),
            Refused::LeaseInvalid { why: _, fence } => {
                Problem::new(Code::TaskLeaseInvalid, sentence).with("fence", fence)
            }
            Refused::TaskTransition { what: _, current, requested } => {
                Problem::new(Code::TaskTransitionInvalid, sentence)
                    .with("current_status", json(&current))
                    .with("requested_status", json(&requested))
            }
            Refused::Contract { task, field, why: _ } => {
                Problem::new(Code::TaskContractInvalid, sentence).with("task_id", task).with("field", field)
            }
            Refused::OutputTarget { task } => {
                Problem::new(Code::TaskOutputTargetRequired, sentence).with("task_id", task)
            }
            Refused::TaskExists { id } | Refused::EntryExists { id } => {
                Problem::new(Code::Conflict, sentence).with("id", id)
            }
            Refused::RollbackOpen => Problem::new(Code::Conflict, sentence),
            Refused::NoTask | Refused::NoEntry | Refused::NoCheckpoint => Problem::new(Code::NotFound, sentence),
            Refused::Reserved { event } => Problem::new(Code::EventReserved, sentence).with("event", event),
            Refused::Epoch { presented: _, current } => {
                Problem::new(Code::WorkspaceEpochStale, sentence).with("lease_epoch", current)
            }
            Refused::Invalid { field, why: _ } => Problem::new(Code::Invalid, sentence).with("field", field),
            Refused::TooLarge { field, size, limit } => {
                Problem::new(Code::TooLarge, sentence).with("field", field).with("size", size).with("limit", limit)
            }
            Refused::Full { what: _, limit } => Problem::new(Code::LimitReached, sentence).with("limit", limit),
        }
    }
}

impl From<TenantRefused> for Problem {
    fn from(refused: TenantRefused) -> Self {
        let sentence = refused.to_string();
        match refused {
            TenantRefused::Invalid { field, why: _ } => Problem::new(Code::Invalid, sentence).with("field", field),
            TenantRefused::Exists | TenantRefused::Erasing => Problem::new(Code::Conflict, sentence),
            TenantRefused::Precondition { expected: _, head } => {
                Problem::new(Code::PreconditionFailed, sentence).with("revision", head)
            }
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let sentence = error.to_string();
        match error {
            Error::Refused(refused) => refused.into(),
            Error::Job(refused) => refused.into(),
            Error::Run(refused) => refused.into(),
            Error::NotFound(_) => Problem::new(Code::NotFound, sentence),
            Error::Deleted => Problem::new(Code::ThreadDeleted, sentence),
            Error::InFlight => Problem::new(Code::InFlight, sentence),
            Error::IdempotencyMismatch => Problem::new(Code::IdempotencyMismatch, sentence),
            Error::Busy { what: _, retry_after } => Problem::new(Code::Busy, sentence).after(retry_after),
            Error::AlreadyPromoted(admission) => Problem::new(Code::AlreadyPromoted, sentence)
                .with("turn_id", json(&admission.turn_id))
                .with("admission", json(&admission)),
            Error::AlreadyDecided(approval) => Problem::new(Code::AlreadyDecided, sentence)
                .with("decision", json(&approval.decision))
                .with("approval", json(&approval)),
            Error::AlreadyAnswered(question) => Problem::new(Code::AlreadyDecided, sentence)
                .with("answer", json(&question.answer))
                .with("question", json(&question)),
            Error::AlreadyResolved(effect) => Problem::new(Code::AlreadyDecided, sentence)
                .with("resolution", json(&effect.resolution))
                .with("effect", json(&effect)),
            Error::Tenant(refused) => refused.into(),
            Error::Quota { limit, max } => Problem::new(Code::QuotaExceeded, sentence)
                .with("limit", limit)
                .with("max", max)
                .after(Duration::from_secs(5)),
            Error::TenantClosed(_) | Error::TenantNotEmpty => Problem::new(Code::Conflict, sentence),
            Error::BadExport { line, why: _ } => Problem::new(Code::Invalid, sentence).with("line", line),
            Error::RateLimited { limit, retry_after } => {
                let problem = Problem::new(Code::RateLimited, sentence).with("limit", "requests_per_second");
                problem.with("max", limit).after(retry_after)
            }
            Error::Draining => Problem::new(Code::Draining, sentence).after(Duration::from_secs(5)),
            Error::ThreadUnavailable(_) => {
                tracing::error!(%sentence, "a thread is unavailable");
                Problem::new(Code::ThreadUnavailable, sentence).after(Duration::from_secs(30))
            }
            Error::Store(StoreError::Full) => Problem::new(Code::StorageFull, sentence),
            Error::Store(StoreError::Unavailable(why)) => {
                tracing::error!(%why, "the store is not available");
                Problem::new(Code::StoreUnavailable, "the store is not available; the cause is in the server's log")
                    .after(Duration::from_secs(1))
            }
            Error::Store(StoreError::Corrupt(corrupt)) => {
                tracing::error!(record = %corrupt.record, why = %corrupt.why, "a record is corrupt");
                Problem::new(Code::ThreadUnavailable, format!("the thread is unavailable: {sentence}"))
                    .after(Duration::from_secs(30))
            }
            Error::Internal(why) => {
                tracing::error!(%why, "a request met a defect");
                Problem::new(Code::Internal, "the server failed; the cause is in its log")
            }
        }
    }
}

impl Problem {
    /// As it travels.
    fn document(&self) -> Vec<u8> {
        let document = Document {
            uri: format!("https://raddle.dev/problems/{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            code: self.code.as_str(),
            detail: &self.detail,
            request_id: observe::request_id(),
            extra: &self.extra,
        };
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// When it is worth to try again, in whole seconds, which are all that the header can say: rounded up, so that nobody
    /// comes early.
    fn seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
    }

    /// The whole answer, for a connection on which no request is read.
    pub fn last_words(&self) -> Vec<u8> {
        let (status, body) = (self.code.status(), self.document());
        let wait = self.seconds().map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {CONTENT_TYPE}\r\n{wait}content-length: {length}\r\nconnection: close\r\n\r\n"
        );
        [head.into_bytes(), body].concat()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.document();
        let mut response = (self.code.status(), [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        if let Some(seconds) = self.seconds() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::{
        id::{ApprovalId, InputId, OperationId, QuestionId, TurnId},
        job::JobStatus,
        ports::Corrupt,
        record::{Admission, Approval, Effect, Question},
        time::UnixMs,
    };
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn turn() -> TurnId {
        TurnId::new(Uuid::from_u128(7))
    }

    const AT: &str = "2026-01-02T03:04:05.678Z";

    /// A record with the parts that all of these share.
    fn record<T: serde::de::DeserializeOwned>(parts: Value) -> Box<T> {
        let mut all = json!({
            "thread_id": format!("thr_{}", Uuid::from_u128(1)), "turn_id": turn(), "call_id": "c", "tool": "t",
            "item_id": format!("item_{}", Uuid::from_u128(2)), "operation_id": format!("op_{}", Uuid::from_u128(3)),
            "created_at": AT, "asked_at": AT, "requested_at": AT, "expires_at": AT, "intended_at": AT,
            "started_at": AT, "ended_at": AT, "answered_at": AT, "decided_at": AT,
        });
        all.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn approval(decision: Option<&str>, status: &str) -> Box<Approval> {
        record(json!({
            "id": ApprovalId::new(Uuid::from_u128(7)), "effect_class": "once", "arguments": {}, "arguments_sha256": "",
            "reason": "r", "available_decisions": [], "status": status, "decision": decision,
        }))
    }

    fn question() -> Box<Question> {
        let id = QuestionId::new(Uuid::from_u128(7));
        record(json!({"id": id, "question": "which?", "options": [], "status": "answered", "answer": "blue"}))
    }

    fn effect() -> Box<Effect> {
        let how = json!({"class": "once", "status": "settled", "attempt": 1, "outcome": "succeeded"});
        let mut effect: Box<Effect> = record(how);
        effect.resolution = Some(raddle_domain::record::Resolution::Settle);
        effect
    }

    fn admission() -> Box<Admission> {
        let id = InputId::new(Uuid::from_u128(7));
        record(json!({"id": id, "delivery": "queue", "status": "promoted", "prompt": "x", "overrides": {}}))
    }

    #[test]
    fn every_error_has_the_status_and_code_of_the_contract() {
        let corrupt = || Corrupt { record: "threads/x".into(), why: "checksum".into() };
        let rows: Vec<(Error, u16, &str)> = vec![
            (Refused::TurnOpen { turn: turn() }.into(), 409, "turn-open"),
            (Refused::ThreadArchived.into(), 409, "thread-archived"),
            (JobRefused::Not { what: "paused", status: JobStatus::Failed }.into(), 409, "conflict"),
            (JobRefused::CommandRuns.into(), 409, "conflict"),
            (JobRefused::NotYours.into(), 409, "conflict"),
            (JobRefused::NotDue.into(), 409, "conflict"),
            (JobRefused::Precondition { expected: 3, head: 9 }.into(), 412, "precondition-failed"),
            (JobRefused::Invalid { field: "cron", why: "is none".into() }.into(), 422, "invalid"),
            (JobRefused::TooLarge { field: "payload", size: 2, limit: 1 }.into(), 413, "too-large"),
            (JobRefused::Forbidden { reason: "r".into(), rule: "1".into() }.into(), 403, "forbidden"),
            (Refused::TurnNotActive { turn: turn(), active: None }.into(), 409, "turn-not-active"),
            (Refused::Precondition { expected: 3, head: 9 }.into(), 412, "precondition-failed"),
            (Refused::InboxFull { limit: 100 }.into(), 429, "inbox-full"),
            (Refused::NothingToSteer.into(), 409, "turn-not-active"),
            (Refused::NothingToEdit.into(), 409, "conflict"),
            (Refused::NothingToCompact.into(), 409, "conflict"),
            (Refused::NotQueued { input: InputId::new(Uuid::nil()) }.into(), 404, "not-found"),
            (Refused::NoCheckpoint { name: "x".into() }.into(), 404, "not-found"),
            (Refused::Expired { at: UnixMs(7) }.into(), 409, "already-decided"),
            (Refused::NotPending { approval: ApprovalId::new(Uuid::nil()) }.into(), 409, "already-decided"),
            (Refused::NotAsked { question: QuestionId::new(Uuid::nil()) }.into(), 409, "already-decided"),
            (Refused::NotUncertain { operation: OperationId::new(Uuid::nil()) }.into(), 409, "already-decided"),
            (Error::AlreadyPromoted(admission()), 409, "already-promoted"),
            (Error::AlreadyDecided(approval(Some("denied"), "denied")), 409, "already-decided"),
            (Error::AlreadyAnswered(question()), 409, "already-decided"),
            (Error::AlreadyResolved(effect()), 409, "already-decided"),
            (Refused::Invalid { field: "prompt", why: "is empty".into() }.into(), 422, "invalid"),
            (Refused::TooLarge { field: "prompt", size: 9, limit: 8 }.into(), 413, "too-large"),
            (Error::NotFound("thread"), 404, "not-found"),
            (Error::Deleted, 410, "thread-deleted"),
            (Error::InFlight, 409, "in-flight"),
            (Error::IdempotencyMismatch, 422, "idempotency-mismatch"),
            (Error::Busy { what: "the mailbox", retry_after: Duration::from_millis(200) }, 503, "busy"),
            (Error::Draining, 503, "draining"),
            (Error::ThreadUnavailable("record x".into()), 503, "thread-unavailable"),
            (StoreError::Full.into(), 507, "storage-full"),
            (StoreError::Unavailable("EIO".into()).into(), 503, "store-unavailable"),
            (StoreError::Corrupt(corrupt()).into(), 503, "thread-unavailable"),
            (Error::Internal("a secret path".into()), 500, "internal"),
        ];
        for (error, status, code) in rows {
            let problem = Problem::from(error.clone());
            assert_eq!((problem.code.status().as_u16(), problem.code.as_str()), (status, code), "{error:?}");
            // A field of its own must not stand in the way of one that every problem has.
            for taken in ["type", "title", "status", "code", "detail", "request_id"] {
                assert!(!problem.extra.contains_key(taken), "{error:?}");
            }
            let response = problem.into_response();
            let waits = response.headers().contains_key(header::RETRY_AFTER);
            assert_eq!(waits, matches!(status, 429 | 503), "{error:?}");
        }
    }

    #[test]
    fn a_defect_keeps_its_cause_to_itself() {
        let problem = Problem::from(Error::Internal("a secret path".into()));
        assert!(!problem.detail.contains("secret"));
    }

    #[test]
    fn a_corrupt_record_is_named() {
        let corrupt = Corrupt { record: "threads/default/thr_1".into(), why: "checksum".into() };
        let problem = Problem::from(Error::Store(corrupt.into()));
        assert!(problem.detail.contains("threads/default/thr_1"), "{}", problem.detail);
    }

    #[test]
    fn an_open_turn_is_named_in_a_field_of_its_own() {
        let problem = Problem::from(Refused::TurnOpen { turn: turn() });
        assert_eq!(problem.extra["active_turn"], turn().to_string());
    }

    #[test]
    fn who_comes_too_late_is_told_the_first_decision() {
        let first = Problem::from(Error::AlreadyDecided(approval(Some("approved_always"), "approved")));
        assert_eq!(first.extra["decision"], "approved_always");
        assert_eq!(first.extra["approval"]["status"], "approved");
        assert_eq!(first.extra["approval"]["id"], "apr_00000000-0000-0000-0000-000000000007");
        // Nobody decided: that is no denial.
        let expired = Problem::from(Error::AlreadyDecided(approval(None, "expired")));
        assert_eq!(expired.extra["decision"], Value::Null);
        assert_eq!(expired.extra["approval"]["status"], "expired");
        let passed = Problem::from(Refused::Expired { at: UnixMs(7) });
        assert_eq!(passed.extra["decision"], Value::Null);

        let answered = Problem::from(Error::AlreadyAnswered(question()));
        assert_eq!(answered.extra["answer"], "blue");
        assert_eq!(answered.extra["question"]["status"], "answered");
        let resolved = Problem::from(Error::AlreadyResolved(effect()));
        assert_eq!(resolved.extra["resolution"], "settle");
        assert_eq!(resolved.extra["effect"]["status"], "settled");
        let promoted = Problem::from(Error::AlreadyPromoted(admission()));
        assert_eq!(promoted.extra["turn_id"], turn().to_string());
        assert_eq!(promoted.extra["admission"]["status"], "promoted");
    }

    #[test]
    fn a_retry_is_never_announced_too_early() {
        let wait = |ms| {
            let problem = Problem::new(Code::Busy, "").after(Duration::from_millis(ms));
            problem.into_response().headers()[header::RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!([wait(0), wait(1), wait(1_000), wait(1_001)], ["1", "1", "1", "2"]);
    }

    #[test]
    fn codes_are_kebab_case_and_unique() {
        for (at, code) in Code::ALL.iter().enumerate() {
            assert!(code.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'));
            assert!(Code::ALL[..at].iter().all(|other| other.as_str() != code.as_str()));
            assert!(code.status().is_client_error() || code.status().is_server_error());
        }
    }
}
