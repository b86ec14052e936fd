//! A server with an operator, and tenants with keys.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::path::Path;

use serde_json::{Value, json};

use super::support::{Api, Server, text};

/// The operator's key.
pub const OPERATOR: &str = "operator-key-of-the-tests";

/// A server on `dir` that asks for keys.
pub async fn start(dir: &Path, env: &[(&str, &str)]) -> Server {
    Server::with(dir, &[&[("RADDLE_AUTH_ADMIN_KEY", OPERATOR)], env].concat()).await
}

pub fn operator(server: &Server) -> Api {
    server.api.with_key(OPERATOR)
}

/// Makes a tenant.
pub async fn tenant(server: &Server, id: &str, more: Value) -> Value {
    let mut body = json!({ "id": id });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    operator(server).post("/v1/admin/tenants", body).await.expect(201)
}

/// Makes a key with these scopes; its record, with its text.
pub async fn key(server: &Server, tenant: &str, scopes: &[&str]) -> Value {
    let path = format!("/v1/admin/tenants/{tenant}/keys");
    operator(server).post(&path, json!({ "scopes": scopes })).await.expect(201)
}

/// The API as somebody sees it who has a key with these scopes.
pub async fn member(server: &Server, tenant: &str, scopes: &[&str]) -> Api {
    server.api.with_key(&text(&key(server, tenant, scopes).await["key"]))
}
