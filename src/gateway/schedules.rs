//! Schedules: when jobs are made.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use raddle_domain::{
    id::ScheduleId,
    schedule::{self, CatchUp, Overlap, Schedule},
    time::UnixMs,
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Gateway,
    cursor::{self, List as Of},
    jobs::NewTemplate,
    openapi::{IfMatch, Once, Paged, Reads, Writes},
    problem::Problem,
    request::{Caller, OfTenant, Params, Verb},
    threads::{etag, reply},
    wire::{List, Nothing, nullable, required},
};

/// When jobs are to be made, and which.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSchedule {
    #[schema(max_length = 256)]
    pub name: Option<String>,
    /// Five fields: minute, hour, day of month, month, day of week. This or `at`.
    #[schema(max_length = 256)]
    pub cron: Option<String>,
    /// Once, then.
    pub at: Option<UnixMs>,
    /// A name of the IANA database, in which `cron` is read; UTC unless given.
    pub timezone: Option<String>,
    pub overlap: Option<Overlap>,
    pub catch_up: Option<CatchUp>,
    #[schema(value_type = NewTemplate)]
    pub job: Option<NewTemplate>,
}

/// What of a schedule is to change; what is absent stays. `null` clears `name`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchSchedule {
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, max_length = 256)]
    pub name: Option<Option<String>>,
    /// Takes the place of `at`.
    #[schema(max_length = 256)]
    pub cron: Option<String>,
    /// Takes the place of `cron`.
    pub at: Option<UnixMs>,
    pub timezone: Option<String>,
    pub overlap: Option<Overlap>,
    pub catch_up: Option<CatchUp>,
    pub job: Option<NewTemplate>,
    /// What is missed while it is paused is not made up for.
    pub status: Option<PatchStatus>,
}

/// Whether jobs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PatchStatus {
    Active,
    Paused,
}

/// Make a schedule.
#[utoipa::path(
    post, path = "/v1/schedules", tag = "jobs", request_body = CreateSchedule, params(Once),
    responses(
        (status = 201, body = Schedule, description = "Made, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn create_schedule(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Verb { body, call }: Verb<CreateSchedule>,
) -> Result<Response, Problem> {
    let CreateSchedule { name, cron, at, timezone, overlap, catch_up, job } = body;
    let job = required("job", job)?.into_template("job.")?;
    let (overlap, catch_up) = (overlap.unwrap_or_default(), catch_up.unwrap_or_default());
    let new = schedule::NewSchedule { name, cron, at, timezone, overlap, catch_up, job };
    let done = gateway.runtime.create_schedule(caller.tenant, new, call).await?;
    let location = format!("/v1/schedules/{}", done.value.id);
    Ok(reply(StatusCode::CREATED, done, Some(location), Json))
}

/// List schedules, oldest first.
#[utoipa::path(
    get, path = "/v1/schedules", tag = "jobs", params(Paged),
    responses((status = 200, body = List<Schedule>, description = "A page"), Reads),
)]
pub async fn list_schedules(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    mut params: Params,
) -> Result<Json<List<Schedule>>, Problem> {
    let of = Of::Schedules(tenant);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    params.end()?;
    let page = gateway.runtime.schedules(tenant, after, limit).await?;
    Ok(Json(List { data: page.data, next_cursor: page.next.map(|place| cursor::encode(of, &place)) }))
}

/// Read a schedule.
#[utoipa::path(
    get, path = "/v1/schedules/{schedule}", tag = "jobs", params(("schedule" = ScheduleId, Path)),
    responses((status = 200, body = Schedule, description = "As of its `seq`", headers(("ETag" = String))), Reads),
)]
pub async fn get_schedule(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, schedule): OfTenant<ScheduleId>,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    let schedule = gateway.runtime.schedule(tenant, schedule).await?;
    Ok((etag(schedule.seq), Json(schedule)).into_response())
}

/// Change a schedule, or hold it back.
#[utoipa::path(
    patch, path = "/v1/schedules/{schedule}", tag = "jobs", request_body = PatchSchedule,
    params(("schedule" = ScheduleId, Path), IfMatch),
    responses((status = 200, body = Schedule, description = "As changed", headers(("ETag" = String))), Writes),
)]
pub async fn patch_schedule(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, schedule): OfTenant<ScheduleId>,
    Verb { body, call }: Verb<PatchSchedule>,
) -> Result<Response, Problem> {
    let PatchSchedule { name, cron, at, timezone, overlap, catch_up, job, status } = body;
    let job = job.map(|job| job.into_template("job.")).transpose()?;
    let paused = status.map(|status| status == PatchStatus::Paused);
    let patch = schedule::SchedulePatch { name, cron, at, timezone, overlap, catch_up, job, paused };
    let done = gateway.runtime.patch_schedule(tenant, schedule, patch, call).await?;
    Ok(reply(StatusCode::OK, done, None, Json))
}

/// Delete a schedule. The jobs that it made stay.
#[utoipa::path(
    delete, path = "/v1/schedules/{schedule}", tag = "jobs", params(("schedule" = ScheduleId, Path), IfMatch),
    responses((status = 204, description = "Gone"), Writes),
)]
pub async fn delete_schedule(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, schedule): OfTenant<ScheduleId>,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    gateway.runtime.delete_schedule(tenant, schedule, call).await?;
    Ok(StatusCode::NO_CONTENT)
}
