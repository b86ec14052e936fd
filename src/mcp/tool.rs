//! A tool of a server, as one of ours.
//!
//! Its calls are as sure as the effect ledger needs them: what did not reach the server has failed; what did, and was
//! not answered, is unknown, unless the tool only reads.

use std::sync::Arc;

use raddle_domain::{
    ports::{Gate, Invocation, Output, Scene, ToolEnd, ToolRun, ToolSpec},
    record::EffectClass,
};
use serde_json::Value;

use super::{
    answer,
    catalogue::Offered,
    keeper::Kept,
    link::{Call, CallError},
};
use crate::tools::{Tool, Touches};

pub struct McpTool {
    pub server: Arc<Kept>,
    pub offered: Offered,
}

impl Tool for McpTool {
    fn spec(&self) -> ToolSpec {
        let Offered { name, description, schema, .. } = &self.offered;
        ToolSpec { name: name.clone(), description: description.clone(), schema: schema.clone() }
    }

    fn class(&self) -> EffectClass {
        self.offered.class
    }

    fn gate(&self) -> Gate {
        match self.offered.class {
            EffectClass::Read => Gate::Open,
            EffectClass::Idempotent | EffectClass::Reconcilable | EffectClass::Once => Gate::Ask,
        }
    }

    fn reason(&self, _: &Value) -> String {
        let shown = self.server.config.secrets.line(&self.offered.tool, 200);
        format!("it calls `{shown}` of the MCP server `{}`", self.server.config.name)
    }

    /// Of its paths and hosts nobody but the server knows.
    fn touches(&self, _: &Value, _: Scene<'_>) -> Touches {
        Touches { outside: true, ..Touches::default() }
    }

    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun {
        let (server, class, tool) = (self.server.clone(), self.offered.class, self.offered.tool.clone());
        Box::pin(async move {
            let attempt = invocation.attempt;
            let Value::Object(arguments) = invocation.arguments else {
                return ToolEnd::Failed("the arguments are not an object".to_owned());
            };
            let (operation, timeout) = (invocation.operation, server.call_timeout);
            let call = Call { tool, arguments, operation, timeout };
            let answered = match server.link() {
                Ok(link) => link.call(call, output).await,
                Err(why) => Err(CallError::NotSent(why)),
            };
            match answered {
                Ok(result) => answer::end(&result, &server.config.secrets),
                Err(error) => without_answer(&server.config.name, class, attempt, error),
            }
        })
    }
}

fn without_answer(server: &str, class: EffectClass, attempt: u32, error: CallError) -> ToolEnd {
    let reads = class == EffectClass::Read;
    match error {
        CallError::Refused(why) => ToolEnd::Failed(format!("the MCP server `{server}` refused the call: {why}")),
        CallError::NotSent(why) => {
            let said = format!("the MCP server `{server}` is not running: {why}; it is being restarted");
            // What an earlier attempt did is not known any better by this one.
            if reads || attempt <= 1 { ToolEnd::Failed(said) } else { ToolEnd::Unknown(said) }
        }
        CallError::Lost(why) => {
            let said = format!("the MCP server `{server}` was called and did not answer: {why}");
            if reads { ToolEnd::Failed(said) } else { ToolEnd::Unknown(said) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_sent_has_failed_and_what_was_is_unknown_unless_it_only_reads() {
        use EffectClass::{Idempotent, Once, Read};
        let end = |class, attempt, error| match without_answer("s", class, attempt, error) {
            ToolEnd::Failed(why) => ("failed", why),
            ToolEnd::Unknown(why) => ("unknown", why),
            other => panic!("{other:?}"),
        };
        let not_sent = |class, attempt| end(class, attempt, CallError::NotSent("it ended".into()));
        let said = "the MCP server `s` is not running: it ended; it is being restarted";
        assert_eq!(not_sent(Once, 1), ("failed", said.to_owned()));
        assert_eq!(not_sent(Read, 2), ("failed", said.to_owned()));
        assert_eq!(not_sent(Idempotent, 2), ("unknown", said.to_owned()));
        let lost = |class| end(class, 1, CallError::Lost("gone".into())).0;
        assert_eq!((lost(Read), lost(Idempotent), lost(Once)), ("failed", "unknown", "unknown"));
        let refused = end(Once, 2, CallError::Refused("no".into()));
        assert_eq!(refused, ("failed", "the MCP server `s` refused the call: no".to_owned()));
    }
}
