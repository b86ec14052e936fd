//! The OpenAPI document: the handlers' own descriptions, plus what all of them have in common.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use utoipa::{
    IntoParams, IntoResponses,
    openapi::{
        ContentBuilder, Header, OpenApi, Ref, RefOr, Required, Response, ResponseBuilder, Schema,
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::{ArrayItems, KnownFormat, ObjectBuilder, SchemaFormat, SchemaType, Type},
    },
};

use super::{
    problem::{CONTENT_TYPE, Document},
    request::MAX_PAGE,
};

/// What the document says before any route is added.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "raddle",
        description = "A durable, multi-tenant runtime for AI-agent threads. Errors are problem documents (RFC 9457); \
                       clients branch on `code`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    components(schemas(Document)),
    tags(
        (name = "service", description = "The server itself"),
        (name = "threads", description = "Durable conversations"),
        (name = "turns", description = "One prompt to its outcome"),
        (name = "inbox", description = "Prompts that wait"),
        (name = "events", description = "What happened, replayed and live"),
        (name = "approvals", description = "What waits for a person"),
        (name = "mcp", description = "Servers whose tools models may call"),
        (name = "usage", description = "What it cost, and which model answers"),
        (name = "jobs", description = "Work for later"),
        (name = "runs", description = "Work that agents share"),
        (name = "admin", description = "Tenants and keys"),
    ),
)]
pub struct Frame;

/// The problems that any read may meet.
pub struct Reads;
/// The problems that any change may meet.
pub struct Writes;
/// The problem that whatever calls a model may meet beside those.
pub struct Spends;

impl IntoResponses for Reads {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[401, 403, 404, 410, 422, 429, 500, 503])
    }
}

impl IntoResponses for Writes {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[400, 401, 402, 403, 404, 409, 410, 412, 413, 422, 428, 429, 500, 501, 503, 507])
    }
}

impl IntoResponses for Spends {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[402])
    }
}

/// The header that makes a repeated request harmless: every POST takes it.
pub struct Once;
/// The precondition that every change takes.
pub struct IfMatch;
/// What every list takes.
pub struct Paged;

impl IntoParams for Once {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = text().min_length(Some(1)).max_length(Some(255)).pattern(Some("^[!-~]+$"));
        vec![optional(ParameterIn::Header, "Idempotency-Key", "Makes a repeated request harmless", text)]
    }
}

impl IntoParams for IfMatch {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = text().pattern(Some("^(\"[0-9]+\"|\\*)$"));
        vec![optional(
            ParameterIn::Header,
            "If-Match",
            "The `ETag` that the caller saw: a `seq` or a `revision`, in quotes",
            text,
        )]
    }
}

impl IntoParams for Paged {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let number = ObjectBuilder::new().schema_type(Type::Integer);
        let number = number.format(Some(SchemaFormat::KnownFormat(KnownFormat::Int32)));
        let number = number.minimum(Some(1)).maximum(Some(MAX_PAGE));
        vec![
            optional(ParameterIn::Query, "limit", "50 unless given", number),
            optional(ParameterIn::Query, "cursor", "`next_cursor` of the page before", text()),
        ]
    }
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn optional(place: ParameterIn, name: &str, description: &str, schema: ObjectBuilder) -> Parameter {
    let parameter = ParameterBuilder::new().name(name).parameter_in(place).required(Required::False);
    parameter.description(Some(description)).schema(Some(schema)).build()
}

fn problems(statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
    let known = statuses.iter().filter_map(|status| StatusCode::from_u16(*status).ok());
    known.map(|status| (status.as_str().to_owned(), RefOr::T(problem_response(status)))).collect()
}

/// A problem document with this status.
pub fn problem_response(status: StatusCode) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let description = status.canonical_reason().unwrap_or("A problem");
    let response = ResponseBuilder::new().description(description).content(CONTENT_TYPE, content);
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            response.header("Retry-After", Header::new(ObjectBuilder::new().schema_type(Type::Integer))).build()
        }
        _ => response.build(),
    }
}

/// Parameters are present or absent, never `null`: an `Option` in a handler's description means the former.
pub fn without_null_parameters(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for parameter in
            operations.into_iter().flatten().flat_map(|operation| operation.parameters.iter_mut().flatten())
        {
            let RefOr::T(parameter) = parameter else { continue };
            match &mut parameter.schema {
                Some(RefOr::T(Schema::Object(object))) => {
                    if let SchemaType::Array(types) = &mut object.schema_type {
                        types.retain(|kind| *kind != Type::Null);
                        if let [only] = types.as_slice() {
                            object.schema_type = SchemaType::Type(only.clone());
                        }
                    }
                }
                Some(RefOr::T(Schema::OneOf(choice))) => {
                    let null = |schema: &RefOr<Schema>| matches!(schema, RefOr::T(Schema::Object(object)) if object.schema_type == SchemaType::Type(Type::Null));
                    choice.items.retain(|schema| !null(schema));
                    if let [only] = choice.items.as_slice() {
                        parameter.schema = Some(only.clone());
                    }
                }
                _ => {}
            }
        }
    }
}

/// What lists hold is described once: a generator would otherwise make a type of its own for each list.
pub fn with_named_items(document: &mut OpenApi) {
    let Some(components) = &mut document.components else { return };
    let names: Vec<String> = components.schemas.keys().filter(|name| name.starts_with("List_")).cloned().collect();
    for name in names {
        let of = name.trim_start_matches("List_").to_owned();
        let whole = components.schemas.get(&of).cloned();
        let Some(RefOr::T(Schema::Object(list))) = components.schemas.get_mut(&name) else { continue };
        let Some(RefOr::T(Schema::Array(data))) = list.properties.get_mut("data") else { continue };
        let ArrayItems::RefOrSchema(item) = &mut data.items else { continue };
        if whole.is_some_and(|whole| whole == **item) {
            **item = Ref::from_schema_name(of).into();
        }
    }
}
