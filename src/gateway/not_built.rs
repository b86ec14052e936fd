//! Routes that the API promises and this build does not have. They are registered, documented and answer 501:
//! a client learns that the path is right and the feature is missing. Building one means taking its row out.

use axum::http::StatusCode;
use axum::routing::get;
use utoipa::openapi::{HttpMethod, path::OperationBuilder};
use utoipa_axum::router::OpenApiRouter;

use super::{openapi, problem::Problem};

/// A feature, and the paths that will be read for it.
pub struct Part {
    pub what: &'static str,
    tag: &'static str,
    paths: &'static [&'static str],
}

/// Everything that is missing.
pub const TABLE: &[Part] = &[Part { what: "the console", tag: "service", paths: &["/"] }];

/// Adds the routes of the table, and their descriptions.
pub fn mount<S: Clone + Send + Sync + 'static>(mut router: OpenApiRouter<S>) -> OpenApiRouter<S> {
    for part in TABLE {
        let what = part.what;
        for path in part.paths {
            router = router.route(path, get(move || async move { Problem::not_built(what) }));
            let operation = OperationBuilder::new()
                .tag(part.tag)
                .summary(Some(format!("Not built yet: {what}.")))
                .response("501", openapi::problem_response(StatusCode::NOT_IMPLEMENTED))
                .response("500", openapi::problem_response(StatusCode::INTERNAL_SERVER_ERROR))
                .build();
            router.get_openapi_mut().paths.add_path_operation(*path, vec![HttpMethod::Get], operation);
        }
    }
    router
}
