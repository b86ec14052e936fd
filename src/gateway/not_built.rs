//! Routes that the API promises and this build does not have. They are registered, documented and answer 501:
//! a client learns that the path is right and the feature is missing. Building one means taking its row out.

use axum::{
    http::StatusCode,
    routing::{MethodFilter, on},
};
use utoipa::openapi::{
    HttpMethod,
    path::{OperationBuilder, ParameterBuilder, ParameterIn},
    schema::{ObjectBuilder, Type},
};
use utoipa_axum::router::OpenApiRouter;

use super::{openapi, problem::Problem};

/// A feature, and the routes it will have.
pub struct Part {
    pub what: &'static str,
    tag: &'static str,
    routes: &'static [(Verb, &'static str)],
}

#[derive(Clone, Copy)]
enum Verb {
    Get,
    Post,
    Patch,
    Delete,
}
use Verb::{Delete, Get, Patch, Post};

/// Everything that is missing.
pub const TABLE: &[Part] = &[
    Part { what: "the console", tag: "service", routes: &[(Get, "/")] },
    Part {
        what: "tenants and keys",
        tag: "admin",
        routes: &[
            (Post, "/v1/admin/tenants"),
            (Get, "/v1/admin/tenants"),
            (Patch, "/v1/admin/tenants/{tenant}"),
            (Delete, "/v1/admin/tenants/{tenant}"),
            (Post, "/v1/admin/tenants/{tenant}/keys"),
            (Get, "/v1/admin/tenants/{tenant}/keys"),
            (Delete, "/v1/admin/tenants/{tenant}/keys/{key_id}"),
            (Post, "/v1/admin/tenants/{tenant}/erase"),
        ],
    },
];

/// Adds the routes of the table, and their descriptions.
pub fn mount<S: Clone + Send + Sync + 'static>(mut router: OpenApiRouter<S>) -> OpenApiRouter<S> {
    for part in TABLE {
        let what = part.what;
        for (verb, path) in part.routes {
            let (filter, method) = match verb {
                Get => (MethodFilter::GET, HttpMethod::Get),
                Post => (MethodFilter::POST, HttpMethod::Post),
                Patch => (MethodFilter::PATCH, HttpMethod::Patch),
                Delete => (MethodFilter::DELETE, HttpMethod::Delete),
            };
            router = router.route(path, on(filter, move || async move { Problem::not_built(what) }));
            let mut operation = OperationBuilder::new()
                .tag(part.tag)
                .summary(Some(format!("Not built yet: {what}.")))
                .response("501", openapi::problem_response(StatusCode::NOT_IMPLEMENTED))
                .response("500", openapi::problem_response(StatusCode::INTERNAL_SERVER_ERROR));
            for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                let text = ObjectBuilder::new().schema_type(Type::String);
                let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path);
                operation = operation.parameter(parameter.required(utoipa::openapi::Required::True).schema(Some(text)));
            }
            router.get_openapi_mut().paths.add_path_operation(*path, vec![method], operation.build());
        }
    }
    router
}
