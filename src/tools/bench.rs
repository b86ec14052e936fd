//! What tests of tools share.

use raddle_domain::{
    id::{OperationId, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{Invocation, Scene},
    record::TurnSettings,
};
use serde_json::Value;

pub(crate) fn settings() -> TurnSettings {
    TurnSettings {
        engine: "scripted".into(),
        model: "scripted".into(),
        mode: "agent".into(),
        allow_shell: false,
        auto_approve: false,
        trust_mode: false,
        temperature: None,
        top_p: None,
        max_tokens: None,
        price: None,
    }
}

pub(crate) fn key() -> ThreadKey {
    ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::from_bytes([0; 16]) }
}

/// A turn with these settings, on a thread without a workspace.
pub(crate) fn scene(settings: &TurnSettings) -> Scene<'_> {
    Scene { key: key(), workspace: None, policy: None, run: None, settings }
}

pub(crate) fn operation(number: u8) -> OperationId {
    OperationId::from_bytes([number; 16])
}

pub(crate) fn invocation(tool: &str, number: u8, attempt: u32, arguments: Value) -> Invocation {
    Invocation {
        key: key(),
        turn: TurnId::from_bytes([1; 16]),
        operation: operation(number),
        attempt,
        tool: tool.to_owned(),
        arguments,
        workspace: None,
        policy: None,
        trusted: false,
        run: None,
    }
}
