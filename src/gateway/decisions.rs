//! What waits for a person: approvals, questions, effects with an uncertain outcome. Across all threads of a tenant,
//! because a person who decides looks at everything that waits, and names a record by its id alone.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode, response::Response};
use raddle_actors::{Page, RecordQuery};
use raddle_domain::{
    id::{ApprovalId, OperationId, QuestionId, ThreadId},
    record::{Approval, ApprovalStatus, Effect, EffectStatus, Question, QuestionStatus},
};
use uuid::Uuid;

use super::{
    Gateway,
    cursor::{self, List as Of},
    openapi::{IfMatch, Once, Paged, Reads, Writes},
    problem::Problem,
    request::{Caller, OfTenant, Params, Verb},
    threads::reply,
    wire::{AnswerQuestion, DecideApproval, List, ResolveEffect},
};

// ---- lists ---------------------------------------------------------------------------------------

/// What a list was asked for.
struct Asked<S> {
    of: Of,
    query: RecordQuery,
    status: Option<S>,
}

impl<S: Copy + PartialEq> Asked<S> {
    /// Reads the parameters. Of the `words` for a status, those with `open` have an index of their own.
    fn read(mut params: Params, of: Of, words: &[(&str, S)], open: S) -> Result<Self, Problem> {
        let limit = params.limit()?;
        let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
        let status = params.word("status", words)?;
        let thread = params.take::<ThreadId>("thread", "a thread id")?;
        params.end()?;
        let query = RecordQuery { thread, open: status == Some(open), after, limit };
        Ok(Self { of, query, status })
    }
}

/// A page of what was asked for. What has another status is left out after the page was read, so that a status that
/// hardly any record has costs no more than any other.
fn page<T, S: PartialEq>(
    (of, status): (Of, Option<S>),
    found: Page<T, Uuid>,
    status_of: impl Fn(&T) -> S,
) -> Json<List<T>> {
    let mut data = found.data;
    data.retain(|record| status.as_ref().is_none_or(|status| *status == status_of(record)));
    Json(List { data, next_cursor: found.next.map(|place| cursor::encode(of, &place)) })
}

const APPROVALS: [(&str, ApprovalStatus); 6] = [
    ("pending", ApprovalStatus::Pending),
    ("approved", ApprovalStatus::Approved),
    ("denied", ApprovalStatus::Denied),
    ("aborted", ApprovalStatus::Aborted),
    ("expired", ApprovalStatus::Expired),
    ("cancelled", ApprovalStatus::Cancelled),
];

const QUESTIONS: [(&str, QuestionStatus); 4] = [
    ("pending", QuestionStatus::Pending),
    ("answered", QuestionStatus::Answered),
    ("expired", QuestionStatus::Expired),
    ("cancelled", QuestionStatus::Cancelled),
];

const EFFECTS: [(&str, EffectStatus); 4] = [
    ("intended", EffectStatus::Intended),
    ("started", EffectStatus::Started),
    ("settled", EffectStatus::Settled),
    ("uncertain", EffectStatus::Uncertain),
];

// ---- approvals -----------------------------------------------------------------------------------

/// List approvals of all threads, oldest first.
#[utoipa::path(
    get, path = "/v1/approvals", tag = "approvals",
    params(
        ("status" = Option<ApprovalStatus>, Query, description = "Only these; a page may then be short and have a `next_cursor`"),
        ("thread" = Option<ThreadId>, Query, description = "Of this thread only"),
        Paged,
    ),
    responses((status = 200, body = List<Approval>, description = "A page"), Reads),
)]
pub async fn list_approvals(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    params: Params,
) -> Result<Json<List<Approval>>, Problem> {
    let asked = Asked::read(params, Of::Approvals(tenant), &APPROVALS, ApprovalStatus::Pending)?;
    let found = gateway.runtime.approvals(tenant, asked.query).await?;
    Ok(page((asked.of, asked.status), found, |approval| approval.status))
}

/// Read an approval.
#[utoipa::path(
    get, path = "/v1/approvals/{approval}", tag = "approvals", params(("approval" = ApprovalId, Path)),
    responses((status = 200, body = Approval, description = "As it stands"), Reads),
)]
pub async fn get_approval(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, approval): OfTenant<ApprovalId>,
    params: Params,
) -> Result<Json<Approval>, Problem> {
    params.end()?;
    Ok(Json(gateway.runtime.approval(tenant, approval).await?))
}

/// Decide an approval. The first decision wins; a later one is told of it.
#[utoipa::path(
    post, path = "/v1/approvals/{approval}", tag = "approvals", request_body = DecideApproval,
    params(("approval" = ApprovalId, Path), Once, IfMatch),
    responses(
        (status = 200, body = Approval, description = "Decided, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn decide_approval(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, approval): OfTenant<ApprovalId>,
    Verb { body, call }: Verb<DecideApproval>,
) -> Result<Response, Problem> {
    let (decision, reason) = body.into_decision()?;
    let done = gateway.runtime.decide(tenant, approval, decision, reason, call).await?;
    Ok(reply(StatusCode::OK, done, None, Json))
}

// ---- questions -----------------------------------------------------------------------------------

/// List what agents asked, in all threads, oldest first.
#[utoipa::path(
    get, path = "/v1/questions", tag = "approvals",
    params(
        ("status" = Option<QuestionStatus>, Query, description = "Only these; a page may then be short and have a `next_cursor`"),
        ("thread" = Option<ThreadId>, Query, description = "Of this thread only"),
        Paged,
    ),
    responses((status = 200, body = List<Question>, description = "A page"), Reads),
)]
pub async fn list_questions(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    params: Params,
) -> Result<Json<List<Question>>, Problem> {
    let asked = Asked::read(params, Of::Questions(tenant), &QUESTIONS, QuestionStatus::Pending)?;
    let found = gateway.runtime.questions(tenant, asked.query).await?;
    Ok(page((asked.of, asked.status), found, |question| question.status))
}

/// Read a question.
#[utoipa::path(
    get, path = "/v1/questions/{question}", tag = "approvals", params(("question" = QuestionId, Path)),
    responses((status = 200, body = Question, description = "As it stands"), Reads),
)]
pub async fn get_question(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, question): OfTenant<QuestionId>,
    params: Params,
) -> Result<Json<Question>, Problem> {
    params.end()?;
    Ok(Json(gateway.runtime.question(tenant, question).await?))
}

/// Answer a question. The first answer wins; a later one is told of it.
#[utoipa::path(
    post, path = "/v1/questions/{question}", tag = "approvals", request_body = AnswerQuestion,
    params(("question" = QuestionId, Path), Once, IfMatch),
    responses(
        (status = 200, body = Question, description = "Answered, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn answer_question(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, question): OfTenant<QuestionId>,
    Verb { body, call }: Verb<AnswerQuestion>,
) -> Result<Response, Problem> {
    let done = gateway.runtime.answer(tenant, question, body.into_answer()?, call).await?;
    Ok(reply(StatusCode::OK, done, None, Json))
}

// ---- effects -------------------------------------------------------------------------------------

/// List effects whose outcome is, or was, uncertain, in all threads, oldest first.
#[utoipa::path(
    get, path = "/v1/effects", tag = "approvals",
    params(
        ("status" = Option<EffectStatus>, Query, description = "Only these; a page may then be short and have a `next_cursor`"),
        ("thread" = Option<ThreadId>, Query, description = "Of this thread only"),
        Paged,
    ),
    responses((status = 200, body = List<Effect>, description = "A page"), Reads),
)]
pub async fn list_effects(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    params: Params,
) -> Result<Json<List<Effect>>, Problem> {
    let mut asked = Asked::read(params, Of::Effects(tenant), &EFFECTS, EffectStatus::Uncertain)?;
    // Uncertain are also those whose turn has ended, on which nobody has to act any more.
    asked.query.open = false;
    let found = gateway.runtime.effects(tenant, asked.query).await?;
    Ok(page((asked.of, asked.status), found, |effect| effect.status))
}

/// Say what is to become of an uncertain effect.
#[utoipa::path(
    post, path = "/v1/effects/{operation}", tag = "approvals", request_body = ResolveEffect,
    params(("operation" = OperationId, Path), Once, IfMatch),
    responses(
        (status = 200, body = Effect, description = "Resolved, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn resolve_effect(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, operation): OfTenant<OperationId>,
    Verb { body, call }: Verb<ResolveEffect>,
) -> Result<Response, Problem> {
    let (resolution, output) = body.into_resolution()?;
    let done = gateway.runtime.resolve(tenant, operation, resolution, output, call).await?;
    Ok(reply(StatusCode::OK, done, None, Json))
}

#[cfg(test)]
mod tests {
    use raddle_domain::id::TenantId;

    use super::*;

    #[test]
    fn records_are_asked_for_by_the_words_that_they_carry() {
        fn check<S: serde::Serialize>(words: &[(&str, S)]) {
            for (word, status) in words {
                assert_eq!(serde_json::to_value(status).unwrap(), *word);
            }
        }
        check(&APPROVALS);
        check(&QUESTIONS);
        check(&EFFECTS);
    }

    fn asked(query: &str) -> Result<Asked<ApprovalStatus>, Problem> {
        let params = Params::parse(query)?;
        Asked::read(params, Of::Approvals(TenantId::DEFAULT), &APPROVALS, ApprovalStatus::Pending)
    }

    #[test]
    fn only_what_is_open_has_an_index() {
        assert!(asked("status=pending").unwrap().query.open);
        assert!(!asked("status=denied").unwrap().query.open);
        assert!(!asked("").unwrap().query.open);
    }

    #[test]
    fn a_page_without_what_was_asked_for_still_leads_on() {
        let of = Of::Approvals(TenantId::DEFAULT);
        let found = || Page { data: vec![1, 2, 1], next: Some(Uuid::from_u128(9)) };
        let Json(some) = page((of, Some(2)), found(), |record| *record);
        assert_eq!((some.data, some.next_cursor.is_some()), (vec![2], true));
        let Json(none) = page((of, Some(3)), found(), |record| *record);
        assert_eq!((none.data, none.next_cursor.is_some()), (vec![], true));
        let Json(all) = page((of, None), found(), |record| *record);
        assert_eq!(all.data.len(), 3);
        let cursor = all.next_cursor.unwrap();
        assert_eq!(asked(&format!("cursor={cursor}")).unwrap().query.after, Some(Uuid::from_u128(9)));
    }
}
