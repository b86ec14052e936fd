//! Tools to try approvals and the effect ledger with: one per effect class, on the files of one directory.
//!
//! | tool | class | gate | what it does |
//! | --- | --- | --- | --- |
//! | `demo_read` | read | open | reads a file |
//! | `demo_put` | idempotent | ask | replaces a file, whole or not at all |
//! | `demo_send` | reconcilable | ask | delivers a message as `outbox/OPERATION`; asked later, looks for it there |
//! | `demo_append` | once | ask | appends a line to a file |
//! | `demo_wipe` | once | full access | removes a file |
//!
//! Each takes `wait_ms` (before it acts), `then_wait_ms` (after it acted, before it says so) and `fail` (end with
//! that text instead of acting), so that what happens to a call that is interrupted, lost in a crash or unsuccessful
//! can be seen at leisure. A run that acts first appends `OPERATION ATTEMPT TOOL` to the file `.ledger`: whoever
//! wants to know how often something was really done counts lines there.
//!
//! Invariant: nothing outside the directory is read or changed (see [`dir`]). Absent on purpose: syncing. What was
//! done outlives the process, not the machine.

mod dir;

use std::{io, path::Path, sync::Arc, time::Duration};

use raddle_domain::{
    ports::{Gate, Invocation, Output, Scene, ToolEnd, ToolRun, ToolSpec},
    record::EffectClass,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::dir::{Dir, Name, Sent};
use super::{Tool, Touches, blocking::blocking};

/// The longest pause, either one.
const PAUSE_MS: u64 = 10 * 60 * 1000;

/// What is read of a file.
const READ_BYTES: usize = 64 * 1024;

/// What is written at once.
const TEXT_CHARS: usize = 64 * 1024;

/// The demo tools on the files of `path`, which is made if it is not there.
pub fn tools(path: &Path) -> io::Result<Vec<Arc<dyn Tool>>> {
    let dir = Arc::new(Dir::open(path)?);
    let demo = |act| Arc::new(Demo { dir: dir.clone(), act }) as Arc<dyn Tool>;
    Ok([Act::Read, Act::Put, Act::Send, Act::Append, Act::Wipe].map(demo).into())
}

struct Demo {
    dir: Arc<Dir>,
    act: Act,
}

/// What a tool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Read,
    Put,
    Send,
    Append,
    Wipe,
}

/// The arguments of all of them; the schemas say which belong to which.
#[derive(Debug, Deserialize)]
struct Arguments {
    #[serde(default)]
    name: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    line: String,
    #[serde(default)]
    to: String,
    #[serde(default)]
    outcome_unknown: bool,
    #[serde(default)]
    reconcile_unknown: bool,
    #[serde(default)]
    wait_ms: u64,
    #[serde(default)]
    then_wait_ms: u64,
    fail: Option<String>,
}

impl Act {
    const fn tool(self) -> &'static str {
        match self {
            Self::Read => "demo_read",
            Self::Put => "demo_put",
            Self::Send => "demo_send",
            Self::Append => "demo_append",
            Self::Wipe => "demo_wipe",
        }
    }

    fn spec(self) -> ToolSpec {
        let name =
            || ("name", json!({"type": "string", "pattern": Name::PATTERN, "description": "A plain file name."}));
        let text = |about| json!({"type": "string", "maxLength": TEXT_CHARS, "description": about});
        let flag = |about| json!({"type": "boolean", "description": about});
        // A line that holds another one would be two.
        let line = json!({"type": "string", "maxLength": TEXT_CHARS, "pattern": "^[^\\r\\n]*$"});
        let (description, needed, optional) = match self {
            Self::Read => ("Reads a file of the demo directory.", vec![name()], vec![]),
            Self::Put => {
                let text = text("The whole new content.");
                ("Writes a file of the demo directory, in place of what it held.", vec![name(), ("text", text)], vec![])
            }
            Self::Send => {
                let to = json!({"type": "string", "minLength": 1, "maxLength": 200});
                let unsure = flag("For tests: do it, and say that nobody knows whether it happened.");
                let never = flag("For tests: asked later what became of it, say that nobody knows.");
                (
                    "Sends a message, by way of the outbox of the demo directory.",
                    vec![("to", to), ("text", text("The message."))],
                    vec![("outcome_unknown", unsure), ("reconcile_unknown", never)],
                )
            }
            Self::Append => ("Appends a line to a file of the demo directory.", vec![name(), ("line", line)], vec![]),
            Self::Wipe => ("Removes a file of the demo directory.", vec![name()], vec![]),
        };
        let pause = |about| json!({"type": "integer", "minimum": 0, "maximum": PAUSE_MS, "description": about});
        let common = [
            ("wait_ms", pause("For tests: how long to wait before acting.")),
            ("then_wait_ms", pause("For tests: how long to wait after acting.")),
            ("fail", text("For tests: end with this failure instead of acting.")),
        ];
        let required: Vec<&str> = needed.iter().map(|(key, _)| *key).collect();
        let properties: Map<String, Value> =
            needed.iter().cloned().chain(optional).chain(common).map(|(key, about)| (key.to_owned(), about)).collect();
        ToolSpec {
            name: self.tool().to_owned(),
            description: description.to_owned(),
            schema: json!({
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": false,
            }),
        }
    }
}

impl Tool for Demo {
    fn spec(&self) -> ToolSpec {
        self.act.spec()
    }

    fn class(&self) -> EffectClass {
        match self.act {
            Act::Read => EffectClass::Read,
            Act::Put => EffectClass::Idempotent,
            Act::Send => EffectClass::Reconcilable,
            Act::Append | Act::Wipe => EffectClass::Once,
        }
    }

    fn gate(&self) -> Gate {
        match self.act {
            Act::Read => Gate::Open,
            Act::Put | Act::Send | Act::Append => Gate::Ask,
            Act::Wipe => Gate::FullAccess,
        }
    }

    fn reason(&self, arguments: &Value) -> String {
        let of = |key: &str| arguments[key].as_str().unwrap_or_default();
        match self.act {
            Act::Read => format!("it reads the file `{}`", of("name")),
            Act::Put => format!("it replaces the file `{}`", of("name")),
            Act::Send => format!("it sends a message to `{}`", of("to")),
            Act::Append => format!("it appends a line to the file `{}`", of("name")),
            Act::Wipe => format!("it removes the file `{}`", of("name")),
        }
    }

    /// A message reaches the host of an address; everything else, a file.
    fn touches(&self, arguments: &Value, _: Scene<'_>) -> Touches {
        let of = |key: &str| arguments[key].as_str().map(str::to_owned);
        let host = of("to").and_then(|to| to.rsplit_once('@').map(|(_, host)| host.to_owned()));
        Touches { paths: of("name").into_iter().collect(), hosts: host.into_iter().collect(), ..Touches::default() }
    }

    fn run(&self, invocation: Invocation, _: Arc<dyn Output>) -> ToolRun {
        let (dir, act) = (self.dir.clone(), self.act);
        Box::pin(async move {
            let arguments = match Arguments::deserialize(&invocation.arguments) {
                Ok(arguments) => arguments,
                Err(why) => return ToolEnd::Failed(format!("invalid arguments: {why}")),
            };
            let Arguments { wait_ms, then_wait_ms, ref fail, .. } = arguments;
            pause(wait_ms).await;
            if let Some(text) = fail {
                return ToolEnd::Failed(text.clone());
            }
            let end = blocking(move || act.perform(&dir, &invocation, &arguments)).await;
            pause(then_wait_ms).await;
            end
        })
    }

    fn reconcile(&self, invocation: Invocation) -> ToolRun {
        let (dir, act) = (self.dir.clone(), self.act);
        Box::pin(async move {
            let unknown = Arguments::deserialize(&invocation.arguments).is_ok_and(|given| given.reconcile_unknown);
            if act != Act::Send || unknown {
                return ToolEnd::Unknown("the demo tool cannot say what became of it".to_owned());
            }
            let asked = blocking(move || dir.was_sent(invocation.operation)).await;
            match asked {
                Ok(true) => ToolEnd::Done("delivered".to_owned()),
                Ok(false) => ToolEnd::NotDone,
                Err(why) => ToolEnd::Unknown(format!("the outbox cannot be read: {why}")),
            }
        })
    }
}

async fn pause(millis: u64) {
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis.min(PAUSE_MS))).await;
    }
}

impl Act {
    fn perform(self, dir: &Dir, invocation: &Invocation, arguments: &Arguments) -> ToolEnd {
        match self.attempt(dir, invocation, arguments) {
            Ok(ToolEnd::Done(_)) if arguments.outcome_unknown => {
                ToolEnd::Unknown("the demo tool was told to say that it does not know".to_owned())
            }
            Ok(end) => end,
            // Each of them changes something as its last step, or not at all.
            Err(why) => ToolEnd::Failed(why.to_string()),
        }
    }

    fn attempt(self, dir: &Dir, invocation: &Invocation, arguments: &Arguments) -> io::Result<ToolEnd> {
        let Invocation { operation, attempt, .. } = *invocation;
        let Arguments { name, text, line, to, .. } = arguments;
        // Again, though the schema says it: what is run was judged under an older one, for all we know.
        let named = || Name::new(name).ok_or_else(|| io::Error::other("that is no plain file name"));
        let note = || dir.note(&format!("{operation} {attempt} {}\n", self.tool()));
        let temporary = format!("{operation}-{attempt}");
        let said = match self {
            Self::Read => {
                let name = named()?;
                note()?;
                let (bytes, size) = dir.read(&name, READ_BYTES)?;
                shown(&bytes, size)
            }
            Self::Put => {
                let file = named()?;
                note()?;
                dir.put(&file, text, &temporary)?;
                format!("wrote {} bytes to {name}", text.len())
            }
            Self::Send => {
                note()?;
                let message = json!({"to": to, "text": text}).to_string();
                match dir.send(operation, &message, &temporary)? {
                    Sent::Now => format!("delivered to {to}"),
                    Sent::Before => format!("delivered to {to} by an earlier attempt"),
                }
            }
            Self::Append => {
                let file = named()?;
                note()?;
                if !dir.append(&file, line)? {
                    return Ok(ToolEnd::Unknown("the disk took a part of the line".to_owned()));
                }
                format!("appended a line to {name}")
            }
            Self::Wipe => {
                let file = named()?;
                note()?;
                dir.remove(&file)?;
                format!("removed {name}")
            }
        };
        Ok(ToolEnd::Done(said))
    }
}

/// A file as a model gets it.
fn shown(bytes: &[u8], size: u64) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    if size > bytes.len() as u64 {
        text.push_str(&format!("\n[cut: the file has {size} bytes, and these are the first {}]", bytes.len()));
    }
    text
}

#[cfg(test)]
mod tests;
