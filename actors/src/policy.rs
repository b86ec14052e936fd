//! A tenant's policy: its own layer, which is replaced as a whole, and the calls that were approved for ever, which are
//! taken back one by one. Both are read whenever a model calls a tool, so a change holds from the next call on.
//!
//! Whether the rules of a layer can be used is for whoever takes them to check: it takes a grammar of commands.

use raddle_domain::{
    history::ToolCall,
    id::{TenantId, ThreadId, ThreadKey},
    policy::Policy,
    ports::{Document, DocumentKind, Explained, Scene, Supposed, Write},
    record::{Permit, Thread, TurnSettings},
    tenant::Attribution,
};
use serde_json::json;

use crate::{
    admin::Deed,
    disk,
    handle::{Error, Runtime},
};

/// A call that somebody wonders about.
#[derive(Debug, Clone)]
pub enum Wondered {
    Call(ToolCall),
    Command { tool: String, line: String },
}

impl Runtime {
    /// The tenant's own layer.
    pub async fn policy(&self, tenant: TenantId) -> Result<Policy, Error> {
        self.read_of(tenant, move |view| disk::policy(view, tenant)).await
    }

    /// Replaces it.
    pub async fn set_policy(&self, tenant: TenantId, policy: &Policy, by: Option<&Attribution>) -> Result<(), Error> {
        let json = serde_json::to_vec(policy).map_err(|why| Error::Internal(why.to_string()))?;
        let deed = Deed::new("policy.replaced", tenant).with("policy", json!(policy)).document(by, self.shared());
        let documents = vec![Document { kind: DocumentKind::Policy, id: [0; 32], json }, deed];
        self.write(Write::Put { tenant, documents }).await
    }

    /// The calls that the tenant approved for ever, by the names of their rules.
    pub async fn permits(&self, tenant: TenantId) -> Result<Vec<(String, Permit)>, Error> {
        self.read_of(tenant, move |view| disk::permits(view, tenant)).await
    }

    /// Takes such an approval back.
    pub async fn revoke(&self, tenant: TenantId, rule: String, by: Option<&Attribution>) -> Result<(), Error> {
        let deed = Deed::new("permit.revoked", &rule);
        let kind = DocumentKind::PolicyRule;
        let ids = self.read_of(tenant, move |view| {
            Ok(view.documents(tenant, kind)?.into_iter().map(|document| document.id).collect())
        });
        let ids: Vec<[u8; 32]> = ids.await?;
        let id = ids.into_iter().find(|id| disk::permit_name(id) == rule).ok_or(Error::NotFound("permit"))?;
        self.accounted(tenant, deed, by, Write::Forget { tenant, kind, id }).await
    }

    /// What would be decided about a call, on a thread or on one without settings.
    pub async fn explain(
        &self,
        tenant: TenantId,
        thread: Option<ThreadId>,
        wondered: &Wondered,
    ) -> Result<Explained, Error> {
        let key = ThreadKey { tenant, thread: thread.unwrap_or(ThreadId::from_bytes([0; 16])) };
        let on = match thread {
            Some(_) => Some(self.thread(key).await?),
            None => None,
        };
        let rules = self.read_of(tenant, move |view| disk::rules(view, tenant)).await?;
        let settings = settings(on.as_ref());
        let on = on.as_ref();
        let scene = Scene {
            key,
            workspace: on.and_then(|thread| thread.workspace.as_deref()),
            policy: on.and_then(|thread| thread.policy.as_ref()),
            run: on.and_then(|thread| thread.run_id),
            settings: &settings,
        };
        let supposed = match wondered {
            Wondered::Call(call) => Supposed::Call(call),
            Wondered::Command { tool, line } => Supposed::Command { tool, line },
        };
        Ok(self.shared().tools.explain(supposed, scene, &rules))
    }
}

/// The settings of a turn that would be started now.
fn settings(thread: Option<&Thread>) -> TurnSettings {
    let text = |of: fn(&Thread) -> &String| thread.map(of).cloned().unwrap_or_default();
    let flag = |of: fn(&Thread) -> bool| thread.is_some_and(of);
    TurnSettings {
        engine: text(|thread| &thread.engine),
        model: text(|thread| &thread.model),
        mode: text(|thread| &thread.mode),
        allow_shell: flag(|thread| thread.allow_shell),
        auto_approve: flag(|thread| thread.auto_approve),
        trust_mode: flag(|thread| thread.trust_mode),
        temperature: None,
        top_p: None,
        max_tokens: None,
        price: None,
    }
}
