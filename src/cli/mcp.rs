//! `raddle mcp`: the servers whose tools models may call; and the guard that runs beside each of them.

use clap::Args;
use serde::Deserialize;

use super::{Failure, Remote, plain, say, say_json};

/// Shows each server, and its tools.
#[derive(Debug, Args)]
pub struct Mcp {
    #[command(flatten)]
    remote: Remote,
}

/// What a server is run with.
#[cfg(target_os = "linux")]
#[derive(Debug, Args)]
pub struct Guard {
    /// The process whose end ends the command
    parent: i32,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<std::ffi::OsString>,
}

/// The servers, as far as they are shown.
#[derive(Deserialize)]
struct Servers {
    data: Vec<Server>,
}

#[derive(Deserialize)]
struct Server {
    server: String,
    transport: String,
    status: String,
    error: Option<String>,
    tools: Vec<Tool>,
    restarts: u64,
}

#[derive(Deserialize)]
struct Tool {
    name: Option<String>,
    tool: String,
    class: Option<String>,
    left_out: Option<String>,
}

impl Mcp {
    pub async fn run(self) -> Result<(), Failure> {
        let found = self.remote.client()?.mcp().await?;
        if self.remote.json {
            return say_json(&found);
        }
        let found = Servers::deserialize(found)
            .map_err(|err| Failure::Failed(format!("the answer is not as expected: {err}")))?;
        found.data.iter().flat_map(lines).try_for_each(|line| say(&plain(&line)))
    }
}

#[cfg(target_os = "linux")]
impl Guard {
    pub async fn run(self) -> Result<(), Failure> {
        // Its exit code is the command's.
        std::process::exit(crate::mcp::guard::run(self.parent, &self.command).await.into())
    }
}

fn lines(server: &Server) -> Vec<String> {
    let Server { server: name, transport, status, restarts, .. } = server;
    let restarted = if *restarts > 0 { format!(", started again {restarts} times") } else { String::new() };
    let mut lines = vec![format!("{name}  {status}  ({transport}{restarted})")];
    lines.extend(server.error.iter().map(|error| format!("  {error}")));
    lines.extend(server.tools.iter().map(|tool| match (&tool.name, &tool.class, &tool.left_out) {
        (Some(name), Some(class), _) => format!("  {name}  {class}"),
        (_, _, why) => format!("  left out: {}: {}", tool.tool, why.as_deref().unwrap_or_default()),
    }));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_is_shown_with_its_tools_and_what_is_wrong_with_it() {
        let tools = json!([
            {"name": "s__a", "tool": "a", "class": "once"},
            {"tool": "b", "left_out": "its schema is not one of an object"},
        ]);
        let server = json!({
            "server": "s", "transport": "stdio", "status": "failed", "error": "it was killed", "tools": tools,
            "since": "2026-03-01T00:00:00.000Z", "restarts": 2,
        });
        let expected = [
            "s  failed  (stdio, started again 2 times)",
            "  it was killed",
            "  s__a  once",
            "  left out: b: its schema is not one of an object",
        ];
        assert_eq!(lines(&serde_json::from_value(server).unwrap()), expected);
    }
}
