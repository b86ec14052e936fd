//! `exec_shell`: a command line, read by a shell, in the sandbox.
//!
//! Its class is `once`: what a command does to the world is nobody's to know but the command's, so it is never begun
//! twice on its own. It runs in the narrowest mode that anybody named, `workspace-write` at the most; with
//! `full_access` in none at all, which is another question to the person who is asked, and has no answer where the
//! configuration allows no such mode.
//!
//! A command that ran is [`ToolEnd::Done`], whatever its exit code: the model reads that. One that was killed for its
//! time or its appetite has failed, and says what it wrote until then. One that could not be confined was not begun.

use std::{path::PathBuf, sync::Arc, time::Duration};

use raddle_domain::{
    policy::SandboxMode,
    ports::{Gate, Invocation, Output, Scene, ToolEnd, ToolRun, ToolSpec},
    record::{EffectClass, ItemKind},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Command, Tool, Touches};
use crate::{
    sandbox::{End, Exec, ExecCommand, Ran, Sandbox},
    workspace::{self, Workspaces},
};

/// Its name.
pub const EXEC_SHELL: &str = "exec_shell";

/// The longest command line.
const COMMAND_CHARS: usize = 64 * 1024;

/// The tool.
pub struct Shell {
    sandbox: Arc<Sandbox>,
    workspaces: Arc<Workspaces>,
}

#[derive(Debug, Deserialize)]
struct Arguments {
    command: String,
    cwd: Option<String>,
    timeout_ms: Option<u64>,
    #[serde(default)]
    full_access: bool,
}

impl Shell {
    pub const fn new(sandbox: Arc<Sandbox>, workspaces: Arc<Workspaces>) -> Self {
        Self { sandbox, workspaces }
    }

    fn is_widest_full(&self) -> bool {
        self.sandbox.widest() == SandboxMode::DangerFullAccess
    }

    /// In which mode a call is run; the error is for the model.
    fn mode(&self, full_access: bool, layer: Option<SandboxMode>) -> Result<SandboxMode, &'static str> {
        // That commands run free was said by whoever set up the server, and answers nobody who asked for less.
        if !self.sandbox.confines() && layer.is_some_and(|layer| layer < SandboxMode::DangerFullAccess) {
            return Err("the policy wants it in a sandbox, and there is none here");
        }
        let widest = layer.map_or(self.sandbox.widest(), |layer| layer.min(self.sandbox.widest()));
        match full_access {
            true if widest < SandboxMode::DangerFullAccess => Err("full access is not allowed here"),
            true => Ok(SandboxMode::DangerFullAccess),
            // Who did not ask to leave the sandbox does not.
            false => Ok(widest.min(SandboxMode::WorkspaceWrite)),
        }
    }
}

impl Tool for Shell {
    fn spec(&self) -> ToolSpec {
        let most = u64::try_from(self.sandbox.timeout().as_millis()).unwrap_or(u64::MAX);
        let mut properties = json!({
            "command": {
                "type": "string", "minLength": 1, "maxLength": COMMAND_CHARS, "pattern": "^[^\\x00]*$",
                "description": "What the shell is to run, in the workspace.",
            },
            "cwd": {
                "type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[^\\x00]*$",
                "description": "A directory inside of the workspace; without it, the workspace itself.",
            },
            "timeout_ms": {
                "type": "integer", "minimum": 1, "maximum": most,
                "description": format!("After how long to kill it; {most} if nothing is said."),
            },
        });
        if self.is_widest_full() {
            properties["full_access"] = json!({
                "type": "boolean",
                "description": "Run it outside of the sandbox, for what cannot be done in it. A person is asked.",
            });
        }
        let network = match self.sandbox.enforced().network {
            true => "It has a network.",
            false => "It has no network.",
        };
        ToolSpec {
            name: EXEC_SHELL.to_owned(),
            description: format!(
                "Runs a command line in a shell, and returns what it writes and how it ended. It starts in the workspace, \
                 the only place where it may write besides $TMPDIR, with an empty stdin. {network} Nothing that it \
                 starts outlives it."
            ),
            schema: json!({
                "type": "object", "properties": properties, "required": ["command"], "additionalProperties": false,
            }),
        }
    }

    fn class(&self) -> EffectClass {
        EffectClass::Once
    }

    fn gate(&self) -> Gate {
        Gate::Ask
    }

    fn kind(&self) -> ItemKind {
        ItemKind::CommandExecution
    }

    fn offered(&self, scene: Scene<'_>) -> bool {
        scene.settings.allow_shell && self.sandbox.enforced().available
    }

    fn reason(&self, arguments: &Value) -> String {
        match arguments["full_access"].as_bool() {
            Some(true) => "it runs a command outside of the sandbox".to_owned(),
            _ => "it runs a command".to_owned(),
        }
    }

    fn command(&self, arguments: &Value, scene: Scene<'_>) -> Option<Command> {
        let text = |key: &str| arguments[key].as_str();
        // As the thread's settings name it, or would: where the root is, is nobody's business.
        let workspace = scene.workspace.map_or_else(|| workspace::own(scene.key.thread), str::to_owned);
        let cwd = match text("cwd") {
            Some(below) => format!("{workspace}/{below}"),
            None => workspace,
        };
        Some(Command { line: text("command")?.to_owned(), cwd: Some(cwd), words: None })
    }

    fn touches(&self, arguments: &Value, _: Scene<'_>) -> Touches {
        let full_access = arguments["full_access"].as_bool().unwrap_or(false) || !self.sandbox.confines();
        Touches { full_access, ..Touches::default() }
    }

    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun {
        let Arguments { command, cwd, timeout_ms, full_access } = match Arguments::deserialize(&invocation.arguments) {
            Ok(arguments) => arguments,
            Err(why) => return failed(format!("invalid arguments: {why}")),
        };
        let mode = match self.mode(full_access, invocation.policy.and_then(|policy| policy.sandbox)) {
            Ok(mode) => mode,
            Err(why) => return failed(format!("it was not run: {why}")),
        };
        let (sandbox, workspaces) = (self.sandbox.clone(), self.workspaces.clone());
        Box::pin(async move {
            let found = tokio::task::spawn_blocking(move || {
                workspaces.resolve(invocation.key, invocation.workspace.as_deref())
            });
            let workspace = match found.await {
                Ok(Ok(workspace)) => workspace.path().to_owned(),
                Ok(Err(why)) => return ToolEnd::Failed(format!("it was not run: the workspace {why}")),
                Err(why) => return ToolEnd::Failed(format!("it was not run: {why}")),
            };
            let exec = Exec {
                command: ExecCommand::Shell(command),
                workspace,
                cwd: cwd.map(PathBuf::from).unwrap_or_default(),
                mode,
                timeout: timeout_ms.map(Duration::from_millis),
            };
            told(sandbox.run(exec, output).await)
        })
    }
}

fn failed(why: String) -> ToolRun {
    Box::pin(async { ToolEnd::Failed(why) })
}

/// What the model is told of a run.
fn told(Ran { mut output, end }: Ran) -> ToolEnd {
    if !output.is_empty() && !output.ends_with('\n') {
        output.push('\n');
    }
    match end {
        End::Exited(code) => ToolEnd::Done(format!("{output}[exit {code}]")),
        End::Killed(signal) => ToolEnd::Done(format!("{output}[killed by signal {signal}]")),
        End::TimedOut(after) => ToolEnd::Failed(format!("{output}[timed out after {} ms]", after.as_millis())),
        End::TooMuch(excess) => ToolEnd::Failed(format!("{output}[killed: {excess}]")),
        End::Refused(why) => ToolEnd::Failed(format!("{output}[it was not run: {why}]")),
        End::Lost(why) => ToolEnd::Unknown(format!("{output}[{why}]")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Excess;

    #[test]
    fn a_command_that_ran_is_done_whatever_its_exit_code() {
        let told = |output: &str, end| told(Ran { output: output.to_owned(), end });
        assert_eq!(told("", End::Exited(0)), ToolEnd::Done("[exit 0]".to_owned()));
        assert_eq!(told("no\n", End::Exited(1)), ToolEnd::Done("no\n[exit 1]".to_owned()));
        assert_eq!(told("x", End::Killed(9)), ToolEnd::Done("x\n[killed by signal 9]".to_owned()));
    }

    #[test]
    fn what_was_cut_off_has_failed_and_says_what_it_wrote() {
        let told = |end| told(Ran { output: "part".to_owned(), end });
        let late = End::TimedOut(Duration::from_secs(5));
        assert_eq!(told(late), ToolEnd::Failed("part\n[timed out after 5000 ms]".to_owned()));
        let many = End::TooMuch(Excess::Processes(64));
        assert_eq!(told(many), ToolEnd::Failed("part\n[killed: more than 64 processes]".to_owned()));
        assert_eq!(told(End::Refused("why".into())), ToolEnd::Failed("part\n[it was not run: why]".to_owned()));
        assert!(matches!(told(End::Lost("why".into())), ToolEnd::Unknown(_)));
    }
}
