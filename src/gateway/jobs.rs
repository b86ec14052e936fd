//! Jobs: work for later, and what became of it.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use raddle_actors::JobQuery;
use raddle_domain::{
    id::JobId,
    job::{BACKOFF_BASE_MS, CommandWork, Job, JobStatus, MAX_ATTEMPTS, Template, TurnWork, WebhookWork, Work},
    time::UnixMs,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    Gateway,
    cursor::{self, List as Of},
    openapi::{IfMatch, Once, Paged, Reads, Writes},
    problem::{Code, Problem},
    request::{Caller, OfTenant, Params, Verb},
    threads::{etag, reply},
    wire::{List, Nothing, required},
};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Start a turn on a thread and follow it to its end: `{thread_id, prompt, ...}`.
    Turn,
    /// POST a body to an address: `{url, body, secret?}`.
    Webhook,
    /// Run a command in a thread's workspace: `{thread_id, command, cwd?, timeout_ms?}`.
    Command,
}

/// What a kind of work needs: of a turn, of a webhook, of a command.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it only describes the field; what it may hold follows from the kind beside it")]
pub enum WorkPayload {
    Turn(TurnWork),
    Webhook(WebhookWork),
    Command(CommandWork),
}

/// Work to be done.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJob {
    #[schema(value_type = String, min_length = 1, max_length = 256)]
    pub name: Option<String>,
    #[schema(value_type = JobKind)]
    pub kind: Option<JobKind>,
    /// What the kind needs.
    #[schema(value_type = WorkPayload)]
    pub payload: Option<Map<String, Value>>,
    /// Retries after a failure; 3 unless given.
    #[schema(maximum = 100)]
    pub max_attempts: Option<u32>,
    /// The pause before the first retry, which doubles with each; 500 unless given.
    #[schema(maximum = 86_400_000)]
    pub backoff_base_ms: Option<u64>,
    /// Not before then.
    pub run_at: Option<UnixMs>,
}

/// Work of which a schedule makes jobs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTemplate {
    #[schema(value_type = String, min_length = 1, max_length = 256)]
    pub name: Option<String>,
    #[schema(value_type = JobKind)]
    pub kind: Option<JobKind>,
    /// What the kind needs.
    #[schema(value_type = WorkPayload)]
    pub payload: Option<Map<String, Value>>,
    /// Retries after a failure; 3 unless given.
    #[schema(maximum = 100)]
    pub max_attempts: Option<u32>,
    /// The pause before the first retry, which doubles with each; 500 unless given.
    #[schema(maximum = 86_400_000)]
    pub backoff_base_ms: Option<u64>,
}

impl From<CreateJob> for NewTemplate {
    fn from(new: CreateJob) -> Self {
        let CreateJob { name, kind, payload, max_attempts, backoff_base_ms, run_at: _ } = new;
        Self { name, kind, payload, max_attempts, backoff_base_ms }
    }
}

impl NewTemplate {
    /// `prefix` stands before the names of fields: `job.` in a schedule.
    pub fn into_template(self, prefix: &str) -> Result<Template, Problem> {
        let name = required(&format!("{prefix}name"), self.name)?;
        let kind = required(&format!("{prefix}kind"), self.kind)?;
        let payload = required(&format!("{prefix}payload"), self.payload)?;
        Ok(Template {
            max_attempts: self.max_attempts.unwrap_or(MAX_ATTEMPTS),
            backoff_base_ms: self.backoff_base_ms.unwrap_or(BACKOFF_BASE_MS),
            ..Template::new(name, work(kind, payload, prefix)?)
        })
    }
}

/// The payload as the kind has it, or the name of what is wrong with it.
fn work(kind: JobKind, payload: Map<String, Value>, prefix: &str) -> Result<Work, Problem> {
    fn read<T: serde::de::DeserializeOwned>(payload: Map<String, Value>, prefix: &str) -> Result<T, Problem> {
        serde_path_to_error::deserialize(Value::Object(payload)).map_err(|err| {
            let why = err.inner().to_string();
            let path = err.path().to_string();
            if let Some(name) = why.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
                let field = format!("{prefix}payload.{name}");
                let detail = format!("`{field}` is not a field of this request");
                return Problem::new(Code::UnknownField, detail).with("field", field);
            }
            let missing = why.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
            match (missing, path.as_str()) {
                (Some(name), _) => Problem::invalid(&format!("{prefix}payload.{name}"), "is required"),
                (None, ".") => Problem::invalid(&format!("{prefix}payload"), format_args!("is not acceptable: {why}")),
                (None, path) => {
                    Problem::invalid(&format!("{prefix}payload.{path}"), format_args!("is not acceptable: {why}"))
                }
            }
        })
    }
    Ok(match kind {
        JobKind::Turn => Work::Turn(read(payload, prefix)?),
        JobKind::Webhook => Work::Webhook(read(payload, prefix)?),
        JobKind::Command => Work::Command(read(payload, prefix)?),
    })
}

const STATUSES: [(&str, JobStatus); 7] = {
    let mut words = [("", JobStatus::Queued); 7];
    let mut at = 0;
    while at < 7 {
        words[at] = (JobStatus::ALL[at].as_str(), JobStatus::ALL[at]);
        at += 1;
    }
    words
};

/// Make a job. It is begun when it is due and there is a place.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", request_body = CreateJob, params(Once),
    responses(
        (status = 201, body = Job, description = "Made, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn create_job(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Verb { body, call }: Verb<CreateJob>,
) -> Result<Response, Problem> {
    let run_at = body.run_at;
    let template = NewTemplate::from(body).into_template("")?;
    let done = gateway.runtime.create_job(caller.tenant, template, run_at, call).await?;
    let location = format!("/v1/jobs/{}", done.value.id);
    Ok(reply(StatusCode::CREATED, done, Some(location), Json))
}

/// List jobs, oldest first.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs",
    params(
        ("status" = Option<JobStatus>, Query, description = "Only these; a page may then be short and have a `next_cursor`"),
        Paged,
    ),
    responses((status = 200, body = List<Job>, description = "A page"), Reads),
)]
pub async fn list_jobs(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    mut params: Params,
) -> Result<Json<List<Job>>, Problem> {
    let of = Of::Jobs(tenant);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    let status = params.word("status", &STATUSES)?;
    params.end()?;
    let page = gateway.runtime.jobs(tenant, JobQuery { status, after, limit }).await?;
    Ok(Json(List { data: page.data, next_cursor: page.next.map(|place| cursor::encode(of, &place)) }))
}

/// Read a job, with its history.
#[utoipa::path(
    get, path = "/v1/jobs/{job}", tag = "jobs", params(("job" = JobId, Path)),
    responses((status = 200, body = Job, description = "As of its `seq`", headers(("ETag" = String))), Reads),
)]
pub async fn get_job(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, job): OfTenant<JobId>,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    let job = gateway.runtime.job(tenant, job).await?;
    Ok((etag(job.seq), Json(job)).into_response())
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident = $path:literal, $verb:ident;)*) => {$(
        $(#[$doc])*
        #[utoipa::path(
            post, path = $path, tag = "jobs", request_body(content = Nothing, description = "Nothing"),
            params(("job" = JobId, Path), Once, IfMatch),
            responses(
                (status = 200, body = Job, description = "As it is now, and durable",
                    headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
                Writes,
            ),
        )]
        pub async fn $name(
            State(gateway): State<Arc<Gateway>>,
            OfTenant(tenant, job): OfTenant<JobId>,
            Verb { body: Nothing {}, call }: Verb<Nothing>,
        ) -> Result<Response, Problem> {
            let done = gateway.runtime.$verb(tenant, job, call).await?;
            Ok(reply(StatusCode::OK, done, None, Json))
        }
    )*};
}

verbs! {
    /// Hold a job back. A turn that it runs is ended, a request given up; a command that runs cannot be held back.
    pause_job = "/v1/jobs/{job}/pause", pause_job;
    /// Let a job that was held back go on.
    resume_job = "/v1/jobs/{job}/resume", resume_job;
    /// End a job, whatever it is doing.
    cancel_job = "/v1/jobs/{job}/cancel", cancel_job;
    /// Have a job done again that failed, was cancelled, or is uncertain; or at once, if it waits for its retry.
    retry_job = "/v1/jobs/{job}/retry", retry_job;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Result<Template, (Code, String)> {
        let new: CreateJob = serde_json::from_str(text).unwrap();
        let made = NewTemplate::from(new).into_template("");
        made.map_err(|problem| (problem.code, problem.extra["field"].as_str().unwrap_or_default().to_owned()))
    }

    #[test]
    fn a_payload_is_read_as_its_kind_has_it() {
        let invalid = |field: &str| Err((Code::Invalid, field.to_owned()));
        assert_eq!(template("{}"), invalid("name"));
        assert_eq!(template(r#"{"name":"n"}"#), invalid("kind"));
        assert_eq!(template(r#"{"name":"n","kind":"webhook"}"#), invalid("payload"));
        assert_eq!(template(r#"{"name":"n","kind":"webhook","payload":{}}"#), invalid("payload.url"));
        assert_eq!(template(r#"{"name":"n","kind":"webhook","payload":{"url":7}}"#), invalid("payload.url"));
        let unknown = template(r#"{"name":"n","kind":"webhook","payload":{"url":"http://x","to":1}}"#);
        assert_eq!(unknown, Err((Code::UnknownField, "payload.to".to_owned())));
        let nobody = template(r#"{"name":"n","kind":"turn","payload":{"thread_id":"x","prompt":"p"}}"#);
        assert_eq!(nobody, invalid("payload.thread_id"));
        let made = template(r#"{"name":"n","kind":"webhook","payload":{"url":"http://x"},"max_attempts":0}"#).unwrap();
        assert_eq!((made.max_attempts, made.backoff_base_ms), (0, BACKOFF_BASE_MS));
    }

    #[test]
    fn every_status_has_its_word() {
        for (word, status) in STATUSES {
            assert_eq!(serde_json::to_value(status).unwrap(), word);
        }
    }
}
