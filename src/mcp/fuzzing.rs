//! What servers answer: whatever it is, it has bounds when a model gets it, and no secret of its server.

use std::collections::HashSet;

use raddle_domain::ports::ToolEnd;
use rmcp::model::CallToolResult;
use serde_json::Value;

use super::{
    answer,
    catalogue::{self, Catalogue},
    config::{self, Server},
};

/// Handed to the server, which may say it.
const SECRET: &str = "hush-hush-hush";

fn server() -> Server {
    let text = format!(r#"{{"mcpServers": {{"my server": {{"command": "x", "env": {{"KEY": "{SECRET}"}}}}}}}}"#);
    config::read(&text, &|_| None).expect("a server").remove(0)
}

/// The result of a call.
pub fn mcp_answer(data: &[u8]) {
    let Ok(result) = serde_json::from_slice::<CallToolResult>(data) else { return };
    let text = match answer::end(&result, &server().secrets) {
        ToolEnd::Done(text) | ToolEnd::Failed(text) => text,
        end => panic!("an answer that came is {end:?}"),
    };
    assert!(text.len() <= answer::OUTPUT_BYTES + 200, "{} bytes", text.len());
    assert!(!text.contains(SECRET), "{text}");
}

/// A list of tools: each is offered once, under a name that providers take and that says its server, or is left out.
pub fn mcp_tools(data: &[u8]) {
    let Ok(Value::Array(listed)) = serde_json::from_slice(data) else { return };
    let found = Catalogue::new(&server(), &listed);
    let prefix = catalogue::prefix("my server").expect("a name");
    let mut names = HashSet::new();
    for tool in &found.offered {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        assert!(tool.name.len() <= 64 && tool.name.bytes().all(is_name), "{}", tool.name);
        assert!(catalogue::belongs(&prefix, &tool.name) && names.insert(&tool.name), "{}", tool.name);
        assert!(!tool.description.contains(SECRET), "{}", tool.description);
    }
    assert!(found.offered.len() + found.left_out.len() <= listed.len());
    assert!(found.left_out.iter().all(|left| !left.why.contains(SECRET) && !left.tool.contains(SECRET)));
}
