//! Who may ask what: every request passes here before anything of it is read.
//!
//! A route's row is found by the method and path of the OpenAPI document, which names every route there is; what is in
//! no row is no route, and ends in 404 or 405. A handler learns its tenant from the [`Identity`] that is put beside the
//! request here, and from nowhere else.
//!
//! A caller who ceases to be known is cut off wherever he is: a reply that he waits for becomes a 401, and a stream ends.
//! What he asked for before goes on; it was accepted.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody as _},
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderValue, Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, future, stream};
use raddle_domain::{
    id::TenantId,
    tenant::{Attribution, Scope, Scopes},
    time::UnixMs,
};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::{
    HttpMethod, OpenApi, RefOr,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::{
    Gateway, frame, no_such_path, observe,
    openapi::problem_response,
    problem::{Code, Problem},
    shed,
};
use crate::auth::{Known, Unknown};

/// What a route asks of whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Open,
    /// To speak for a tenant, and to be allowed this.
    Tenant(Scope),
    /// To be the operator.
    Operator,
    /// To be the operator, or to administer the tenant that the path names.
    Keeper,
}

/// Routes whose row is not what their method says: reading is [`Scope::Read`], everything else [`Scope::Write`].
const EXCEPTIONS: &[(Method, &str, Access)] = &[
    (Method::GET, "/", Access::Open),
    (Method::GET, "/healthz", Access::Open),
    (Method::GET, "/readyz", Access::Open),
    (Method::GET, "/metrics", Access::Open),
    (Method::GET, "/openapi.json", Access::Open),
    (Method::GET, "/v1/info", Access::Open),
    // A person's word on what agents may do, and rules that speak for him.
    (Method::POST, "/v1/approvals/{approval}", Access::Tenant(Scope::Approve)),
    (Method::POST, "/v1/questions/{question}", Access::Tenant(Scope::Approve)),
    (Method::POST, "/v1/effects/{operation}", Access::Tenant(Scope::Approve)),
    (Method::PUT, "/v1/policy", Access::Tenant(Scope::Approve)),
    (Method::DELETE, "/v1/policy/permits/{rule}", Access::Tenant(Scope::Approve)),
    // It asks, and changes nothing.
    (Method::POST, "/v1/policy/check", Access::Tenant(Scope::Read)),
    // For everybody of the tenant.
    (Method::PUT, "/v1/routing-rules", Access::Tenant(Scope::Admin)),
    // Everything that anybody of the tenant says.
    (Method::GET, "/v1/trace", Access::Tenant(Scope::Admin)),
    (Method::GET, "/v1/admin/tenants/{tenant}", Access::Keeper),
    (Method::GET, "/v1/admin/tenants/{tenant}/usage", Access::Keeper),
    (Method::POST, "/v1/admin/tenants/{tenant}/keys", Access::Keeper),
    (Method::GET, "/v1/admin/tenants/{tenant}/keys", Access::Keeper),
    (Method::DELETE, "/v1/admin/tenants/{tenant}/keys/{key_id}", Access::Keeper),
    (Method::GET, "/v1/admin/tenants/{tenant}/audit", Access::Keeper),
    (Method::POST, "/v1/admin/tenants/{tenant}/export", Access::Keeper),
];

impl Access {
    /// What the route asks for.
    pub fn of(method: &Method, path: &str) -> Self {
        let exception = EXCEPTIONS.iter().find(|(is, at, _)| is == method && *at == path);
        match exception {
            Some((.., access)) => *access,
            None if path.starts_with("/v1/admin/") => Self::Operator,
            None if *method == Method::GET => Self::Tenant(Scope::Read),
            None => Self::Tenant(Scope::Write),
        }
    }
}

/// The rows of a document's routes.
pub struct Rows(HashMap<(Method, String), Access>);

impl Rows {
    pub fn new(document: &OpenApi) -> Self {
        let paths = document.paths.paths.iter();
        let rows = paths.flat_map(|(path, item)| {
            let operations = [
                (Method::GET, &item.get),
                (Method::PUT, &item.put),
                (Method::POST, &item.post),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ];
            operations.into_iter().filter(|(_, operation)| operation.is_some()).map(move |(method, _)| {
                let access = Access::of(&method, path);
                ((method, path.clone()), access)
            })
        });
        Self(rows.collect())
    }

    fn find(&self, method: &Method, path: &str) -> Option<Access> {
        // A HEAD is answered as the GET beside it.
        let method = if *method == Method::HEAD { Method::GET } else { method.clone() };
        self.0.get(&(method, path.to_owned())).copied()
    }
}

/// Writes into the document what each route asks for.
pub fn describe(document: &mut OpenApi) {
    const SCHEME: &str = "key";
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("rdl_KEY_SECRET, or a JWT").build();
    let components = document.components.get_or_insert_with(Default::default);
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (HttpMethod::Get, Method::GET, &mut item.get),
            (HttpMethod::Put, Method::PUT, &mut item.put),
            (HttpMethod::Post, Method::POST, &mut item.post),
            (HttpMethod::Patch, Method::PATCH, &mut item.patch),
            (HttpMethod::Delete, Method::DELETE, &mut item.delete),
        ];
        for (_, method, operation) in operations {
            let Some(operation) = operation else { continue };
            let scopes: &[&str] = match Access::of(&method, path) {
                Access::Open => continue,
                Access::Tenant(scope) => &[scope.as_str()],
                Access::Operator | Access::Keeper => &["admin"],
            };
            operation.security = Some(vec![SecurityRequirement::new(SCHEME, scopes.iter().copied())]);
            for status in [401, 403, 429] {
                let Ok(status) = axum::http::StatusCode::from_u16(status) else { continue };
                let response = || RefOr::T(problem_response(status));
                operation.responses.responses.entry(status.as_str().to_owned()).or_insert_with(response);
            }
        }
    }
}

/// Who asks, once that is known.
#[derive(Debug, Clone)]
pub struct Identity {
    who: Who,
    pub by: Arc<Attribution>,
}

#[derive(Debug, Clone, Copy)]
enum Who {
    Operator,
    Tenant(TenantId, Scopes),
}

impl Identity {
    /// The tenant that is spoken for, and what may be done in its name.
    pub fn tenant(&self) -> Option<(TenantId, Scopes)> {
        match self.who {
            Who::Operator => None,
            Who::Tenant(tenant, scopes) => Some((tenant, scopes)),
        }
    }

    /// Refuses who may not do what takes `access`.
    fn allows(&self, access: Access) -> Result<(), Problem> {
        match (access, self.who) {
            (Access::Open, _) | (Access::Operator | Access::Keeper, Who::Operator) => Ok(()),
            (Access::Tenant(scope), Who::Tenant(_, scopes)) if scopes.allows(scope) => Ok(()),
            (Access::Keeper, Who::Tenant(_, scopes)) if scopes.allows(Scope::Admin) => Ok(()),
            (Access::Tenant(_), Who::Operator) => Err(Problem::new(
                Code::InsufficientScope,
                "the operator's key speaks for no tenant: use one of its keys",
            )),
            (Access::Tenant(scope), Who::Tenant(..)) => Err(needs(scope)),
            (Access::Keeper, Who::Tenant(..)) => Err(needs(Scope::Admin)),
            (Access::Operator, Who::Tenant(..)) => {
                Err(Problem::new(Code::InsufficientScope, "only the operator's key allows it"))
            }
        }
    }
}

/// What a caller is told whose key does not allow it.
pub fn needs(scope: Scope) -> Problem {
    let why = format!("it takes a key with the scope `{scope}`");
    Problem::new(Code::InsufficientScope, why).with("scope", scope.as_str())
}

/// Whoever passed here; a route that nobody passes to is one that was forgotten, and refuses.
impl<S: Sync> FromRequestParts<S> for Identity {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get().cloned().ok_or_else(|| Unknown::Absent.into())
    }
}

impl From<Unknown> for Problem {
    fn from(why: Unknown) -> Self {
        let sentence = why.to_string();
        match why {
            Unknown::Absent | Unknown::Malformed | Unknown::Key | Unknown::Expired => {
                Problem::new(Code::Unauthenticated, sentence)
            }
            Unknown::Suspended => Problem::new(Code::TenantSuspended, sentence),
        }
    }
}

/// Ends when a caller is not known any more.
type Term = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Ends when any of the tokens is cancelled, or that long from now.
fn term(cut: Vec<CancellationToken>, left: Option<Duration>) -> Term {
    let cut: Vec<_> = cut.into_iter().map(|cut| Box::pin(cut.cancelled_owned())).collect();
    Box::pin(async move {
        let cut = async {
            match cut.is_empty() {
                true => future::pending().await,
                false => drop(future::select_all(cut).await),
            }
        };
        let expired = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = cut => {}
            () = expired => {}
        }
    })
}

/// Which routes are there, where the operator has a place of his own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    All,
    Tenants,
    Operator,
}

impl Serves {
    const fn has(self, access: Access) -> bool {
        match (self, access) {
            (Self::All, _) | (_, Access::Open) => true,
            (Self::Tenants, Access::Tenant(_)) | (Self::Operator, Access::Operator | Access::Keeper) => true,
            (Self::Tenants, Access::Operator | Access::Keeper) | (Self::Operator, Access::Tenant(_)) => false,
        }
    }
}

/// Lets a request pass if its caller may ask it.
pub async fn check(State((gateway, serves)): State<(Arc<Gateway>, Serves)>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let access = route.as_ref().and_then(|route| gateway.rows.find(request.method(), route.as_str()));
    if access.is_some_and(|access| !serves.has(access)) {
        return no_such_path().await.into_response();
    }
    let Some(access) = access.filter(|access| *access != Access::Open) else { return next.run(request).await };
    let (mut parts, body) = request.into_parts();
    let (identity, mut term) = match admit(&gateway, access, &parts) {
        Ok(admitted) => admitted,
        Err(problem) => return refused(&gateway, problem),
    };
    if let Some((tenant, _)) = identity.tenant() {
        let makes_work = route.is_some_and(|route| shed::makes_work(&parts.method, route.as_str()));
        let full = gateway.runtime.admit_request(tenant).err();
        let full = full.or_else(|| makes_work.then(|| gateway.runtime.has_room(tenant).err()).flatten());
        if let Some(full) = full {
            // The body is left where it is.
            return refused(&gateway, full.into());
        }
    }
    parts.extensions.insert(identity);
    let response = tokio::select! {
        response = next.run(Request::from_parts(parts, body)) => response,
        () = &mut term => return refused(&gateway, Unknown::Key.into()),
    };
    // What is whole already needs nobody to go on being known.
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let events = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
    response.map(|body| until(body, term, events))
}

/// A body that goes on for as long as its reader is known. A stream of events says why it ends; anything else is cut
/// off, so that nobody takes it for whole.
fn until(body: Body, term: Term, events: bool) -> Body {
    let end = move || match events {
        true => Ok(frame::named("stream.end", &serde_json::json!({ "reason": "unauthenticated" }))),
        false => Err(std::io::Error::other("the key is not known any more")),
    };
    let pieces = stream::unfold(Some((body.into_data_stream(), term)), move |open| async move {
        let (mut pieces, mut term) = open?;
        tokio::select! {
            piece = pieces.next() => Some((piece?.map_err(std::io::Error::other), Some((pieces, term)))),
            () = &mut term => Some((end(), None)),
        }
    });
    Body::from_stream(pieces)
}

/// Who asks, whether he may, and for how long he is heard.
fn admit(gateway: &Gateway, access: Access, parts: &Parts) -> Result<(Identity, Term), Problem> {
    let Some(auth) = &gateway.config.auth else {
        return match access {
            Access::Operator | Access::Keeper => {
                let why = "tenants are administered with the operator's key, and none is configured: `auth.admin_key`";
                Err(Problem::new(Code::InsufficientScope, why))
            }
            Access::Open | Access::Tenant(_) => {
                local(gateway, parts)?;
                Ok((identity(Who::Tenant(TenantId::DEFAULT, Scopes::ALL), "local".to_owned()), term(Vec::new(), None)))
            }
        };
    };
    let (identity, term) = match auth.known(&parts.headers, &gateway.runtime)? {
        Known::Operator => (identity(Who::Operator, "operator".to_owned()), term(Vec::new(), None)),
        Known::Tenant(member) => {
            let now = gateway.runtime.now();
            let left = member.until.map(|until: UnixMs| Duration::from_millis(until.since(now)));
            let span = tracing::Span::current();
            span.record("tenant", member.tenant.as_str()).record("key", &member.name);
            (identity(Who::Tenant(member.tenant, member.scopes), member.name), term(member.cut, left))
        }
    };
    identity.allows(access)?;
    Ok((identity, term))
}

fn identity(who: Who, by: String) -> Identity {
    Identity { who, by: Arc::new(Attribution { by, request_id: observe::request_id() }) }
}

/// What a web page can make a browser send to loopback is refused: a foreign `Origin`, or a `Host` that is some public
/// name.
fn local(gateway: &Gateway, parts: &Parts) -> Result<(), Problem> {
    if !gateway.config.loopback_only {
        return Ok(());
    }
    let host = parts.uri.authority().map(|authority| authority.as_str());
    let host = host.or_else(|| parts.headers.get(header::HOST)?.to_str().ok());
    let origin = parts.headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    let origin = origin.map(|origin| origin.split_once("://").map_or(origin, |(_, authority)| authority));
    if host.is_none_or(is_local) && origin.is_none_or(is_local) {
        return Ok(());
    }
    let why = "a server without keys answers only to names of the machine itself, such as localhost";
    Err(Problem::new(Code::ForeignOrigin, why))
}

/// Whether `host[:port]` names the machine itself.
fn is_local(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

fn refused(gateway: &Gateway, problem: Problem) -> Response {
    gateway.metrics.refused(problem.code);
    let challenge = matches!(problem.code, Code::Unauthenticated);
    let mut response = problem.into_response();
    if challenge {
        let challenge = HeaderValue::from_static("Bearer realm=\"raddle\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_asks_for_what_its_method_says_unless_it_is_an_exception() {
        let tenant = Access::Tenant;
        let rows = [
            (Method::GET, "/v1/threads", tenant(Scope::Read)),
            (Method::POST, "/v1/threads", tenant(Scope::Write)),
            (Method::DELETE, "/v1/threads/{thread}", tenant(Scope::Write)),
            (Method::POST, "/v1/approvals/{approval}", tenant(Scope::Approve)),
            (Method::POST, "/v1/policy/check", tenant(Scope::Read)),
            (Method::PUT, "/v1/routing-rules", tenant(Scope::Admin)),
            (Method::GET, "/healthz", Access::Open),
            (Method::GET, "/v1/admin/tenants", Access::Operator),
            (Method::POST, "/v1/admin/tenants/{tenant}/erase", Access::Operator),
            (Method::GET, "/v1/admin/tenants/{tenant}/keys", Access::Keeper),
        ];
        for (method, path, access) in rows {
            assert_eq!(Access::of(&method, path), access, "{method} {path}");
        }
    }

    #[test]
    fn every_exception_is_a_route() {
        let rows = Rows::new(super::super::table().get_openapi());
        for (method, path, access) in EXCEPTIONS {
            assert_eq!(rows.find(method, path), Some(*access), "{method} {path}");
        }
        assert_eq!(rows.find(&Method::HEAD, "/v1/threads"), Some(Access::Tenant(Scope::Read)));
        assert_eq!(rows.find(&Method::PUT, "/v1/threads"), None);
    }

    #[test]
    fn the_operator_speaks_for_no_tenant_and_no_tenant_for_the_operator() {
        let operator = identity(Who::Operator, String::new());
        let admin = identity(Who::Tenant(TenantId::DEFAULT, Scopes::of(&[Scope::Admin])), String::new());
        let writer = identity(Who::Tenant(TenantId::DEFAULT, Scopes::of(&[Scope::Write])), String::new());
        let may = |identity: &Identity, access| identity.allows(access).is_ok();
        assert!(may(&operator, Access::Operator) && may(&operator, Access::Keeper));
        assert!(!Scope::ALL.into_iter().any(|scope| may(&operator, Access::Tenant(scope))));
        assert!(!may(&admin, Access::Operator) && may(&admin, Access::Keeper));
        assert!(!may(&writer, Access::Keeper) && may(&writer, Access::Tenant(Scope::Read)));
        assert!(!may(&writer, Access::Tenant(Scope::Approve)));
    }

    #[test]
    fn only_names_of_the_machine_itself_are_local() {
        for local in ["localhost", "LOCALHOST:7878", "127.0.0.1:1", "127.9.9.9", "[::1]:80", "[::1]"] {
            assert!(is_local(local), "{local}");
        }
        for foreign in ["evil.example", "localhost.evil.example:80", "10.0.0.1:7878", "null", "", "[::2]:80"] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }
}
