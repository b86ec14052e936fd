//! Tools that read and change the files of a thread's workspace, and no others.
//!
//! | tool | class | who must agree | what it does |
//! | --- | --- | --- | --- |
//! | `read_file` | read | nobody | shows lines of a file, with their numbers |
//! | `list_dir` | read | nobody | shows what is in a directory |
//! | `grep` | read | nobody | shows the lines that match |
//! | `write_file` | idempotent | a person | makes a file, or puts it in the place of one |
//! | `edit_file` | idempotent | a person | puts one text of a file in the place of another |
//! | `apply_patch` | idempotent | a person | changes several files: all of them or none |
//!
//! [`place`] says what a path may be, [`change`] how files change, [`blobs`] what they were before where that is kept for
//! later; [`past`] tells it, and brings it back. The others are a tool each. All of it waits for a
//! disk, so it runs where that blocks nobody, and is told when its call was given up: a search stops, and a change
//! that is not decided yet is not made.
//!
//! Invariants: nothing outside of the workspace is read or changed; a call that fails has changed nothing; a file is
//! the old one or the new one, never a part. Absent on purpose: a tool to remove or rename (`apply_patch` does both).

mod blobs;
mod change;
mod disk;
mod edit;
mod grep;
mod list;
mod past;
pub(crate) mod patch;
mod place;
mod read;
mod shown;

use std::{path::Display, sync::Arc, time::Duration};

use raddle_domain::{
    policy::{SandboxMode, withheld::Withheld},
    ports::{Files, Gate, Invocation, Output, Scene, ToolEnd, ToolRun, ToolSpec},
    record::{EffectClass, ItemKind},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use self::{
    change::{FileChange, Plan, change},
    place::{Down, Fault, Named, real, unprotected},
};
use super::{
    Tool, Touches,
    blocking::{Stop, blocking},
};
use crate::workspace::{Workspace, Workspaces};

/// What a model may give as the text of a file, or a patch.
const TEXT_CHARS: usize = 1024 * 1024;

const PATH_CHARS: usize = 2048;

/// How long a walk may take before it shows what it has.
const WALK_TIME: Duration = Duration::from_secs(30);

/// The file tools.
pub fn tools(spaces: &Arc<Workspaces>) -> Vec<Arc<dyn Tool>> {
    let tool = |act| Arc::new(FileTool { spaces: spaces.clone(), act }) as Arc<dyn Tool>;
    [Act::Read, Act::List, Act::Grep, Act::Write, Act::Edit, Act::Patch].map(tool).into()
}

/// What such tools did to files, and the way back.
pub fn past(spaces: &Arc<Workspaces>) -> Arc<dyn Files> {
    Arc::new(past::Past::new(spaces.clone()))
}

struct FileTool {
    spaces: Arc<Workspaces>,
    act: Act,
}

/// What a tool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Read,
    List,
    Grep,
    Write,
    Edit,
    Patch,
}

impl Act {
    const fn tool(self) -> &'static str {
        match self {
            Self::Read => "read_file",
            Self::List => "list_dir",
            Self::Grep => "grep",
            Self::Write => "write_file",
            Self::Edit => "edit_file",
            Self::Patch => "apply_patch",
        }
    }

    const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Edit | Self::Patch)
    }

    fn spec(self) -> ToolSpec {
        let path = |about| json!({"type": "string", "maxLength": PATH_CHARS, "description": about});
        let file = || ("path", path("The file, relative to the workspace."));
        let below =
            || ("path", path("Where to begin, relative to the workspace; the workspace itself if it is absent."));
        let text = |about| json!({"type": "string", "maxLength": TEXT_CHARS, "description": about});
        let count = |most: usize, about: String| json!({"type": "integer", "minimum": 1, "maximum": most, "description": about});
        let flag = |about| json!({"type": "boolean", "description": about});
        let (description, needed, optional) = match self {
            Self::Read => (
                "Reads lines of a text file of the workspace. Each line is shown behind its number and a tab, which \
                 are not part of the file.",
                vec![file()],
                vec![
                    ("offset", count(usize::MAX >> 11, "The first line, from 1.".to_owned())),
                    ("limit", count(read::MOST_LINES, format!("How many lines; {} if it is absent.", read::LINES))),
                ],
            ),
            Self::List => (
                "Lists what is in a directory of the workspace: directories end in `/`, links show where they lead.",
                vec![],
                vec![below(), ("depth", count(list::DEPTH, "How many levels; 1 if it is absent.".to_owned()))],
            ),
            Self::Grep => {
                let pattern = "A regular expression (Rust syntax), matched against each line.";
                let glob = "Which files: `*.rs` by name, or with a slash by the path below `path`, as `src/**/*.rs`.";
                let most = format!("The most matches to show; {} if it is absent.", grep::MATCHES);
                (
                    "Searches the text files of the workspace and shows `path:line:text` for each line that matches. \
                     `.git`, links, binary and very large files are passed by.",
                    vec![(
                        "pattern",
                        json!({"type": "string", "minLength": 1, "maxLength": 1000, "description": pattern}),
                    )],
                    vec![
                        below(),
                        ("glob", json!({"type": "string", "minLength": 1, "maxLength": 500, "description": glob})),
                        ("ignore_case", flag("Whether the case of letters does not matter.")),
                        ("max", count(grep::MOST_MATCHES, most)),
                    ],
                )
            }
            Self::Write => (
                "Writes a file of the workspace, in place of what it held; makes it and its directories if they are \
                 not there. To change a part of a file, use edit_file or apply_patch.",
                vec![file(), ("content", text("The whole new content."))],
                vec![],
            ),
            Self::Edit => {
                let old =
                    "The text to replace, exactly as it is in the file, with enough around it to be the only one.";
                let old = json!({"type": "string", "minLength": 1, "maxLength": TEXT_CHARS, "description": old});
                (
                    "Replaces a text in a file of the workspace. It must be there exactly once, unless replace_all is \
                     set.",
                    vec![file(), ("old_string", old), ("new_string", text("The text in its place."))],
                    vec![("replace_all", flag("Replaces it everywhere."))],
                )
            }
            Self::Patch => (
                "Changes files of the workspace, all of them or none. The patch has the form\n\
                 *** Begin Patch\n*** Update File: src/a.rs\n@@ fn that_comes_before\n context\n-removed\n+added\n\
                 *** Add File: b.txt\n+its lines\n*** Delete File: c.txt\n*** End Patch\n\
                 Behind an Update line may stand `*** Move to: PATH`. A hunk is found by its lines, not by numbers.",
                vec![("patch", text("The patch, with its first and last line."))],
                vec![],
            ),
        };
        let required: Vec<&str> = needed.iter().map(|(key, _)| *key).collect();
        let properties: Map<String, Value> =
            needed.iter().cloned().chain(optional).map(|(key, about)| (key.to_owned(), about)).collect();
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

    /// The paths that a call names, as it names them; the workspace itself where it names none.
    fn paths(self, arguments: &Value) -> Vec<String> {
        match (self, arguments["patch"].as_str(), arguments["path"].as_str()) {
            (Self::Patch, patch, _) => patch::paths(patch.unwrap_or_default()),
            (_, _, Some(path)) => vec![path.to_owned()],
            (_, _, None) => vec![".".to_owned()],
        }
    }

    /// Does it. What cannot be read as arguments was judged under another version.
    fn perform(self, at: &At<'_>, arguments: &Value) -> Result<String, Fault> {
        let dir = at.workspace.dir();
        match self {
            Self::Read => read::read(dir, &read_arguments(arguments)?),
            Self::List => list::list(dir, &read_arguments(arguments)?, at.stop, &at.withheld()),
            Self::Grep => grep::grep(dir, &read_arguments(arguments)?, at.stop, &at.withheld()),
            Self::Write => at.change(|| plan_write(at.workspace, &read_arguments(arguments)?)),
            Self::Edit => at.change(|| plan_edit(at.workspace, &read_arguments(arguments)?)),
            Self::Patch => at.change(|| plan_patch(at.workspace, &read_arguments(arguments)?)),
        }
    }
}

fn read_arguments<T: DeserializeOwned>(arguments: &Value) -> Result<T, Fault> {
    T::deserialize(arguments).map_err(|why| Fault::Said(format!("invalid arguments: {why}")))
}

impl FileTool {
    /// The paths of a call, for rules about paths: as it names them, but each in one spelling, and where they lead if
    /// that is somewhere else.
    fn paths(&self, arguments: &Value, scene: Scene<'_>) -> Vec<String> {
        let workspace = self.spaces.find(scene.key, scene.workspace).ok();
        let mut paths = Vec::new();
        for named in self.act.paths(arguments) {
            let Ok(down) = Down::new(&named) else {
                // It is refused when it is run; until then it is what it says.
                paths.push(named);
                continue;
            };
            let leads = workspace.as_ref().and_then(|workspace| real(workspace.dir(), &down, true).ok());
            let leads = leads.filter(|leads| leads != down.as_path()).map(|leads| leads.display().to_string());
            paths.extend([Some(down.to_string()), leads].into_iter().flatten());
        }
        paths
    }
}

impl Tool for FileTool {
    fn spec(&self) -> ToolSpec {
        self.act.spec()
    }

    fn class(&self) -> EffectClass {
        if self.act.changes() { EffectClass::Idempotent } else { EffectClass::Read }
    }

    fn gate(&self) -> Gate {
        if self.act.changes() { Gate::Ask } else { Gate::Open }
    }

    fn kind(&self) -> ItemKind {
        if self.act.changes() { ItemKind::FileChange } else { ItemKind::ToolCall }
    }

    /// Where there is a workspace. The name of one may have been set under another configuration.
    fn offered(&self, scene: Scene<'_>) -> bool {
        scene.workspace.is_none_or(|name| self.spaces.check(scene.key.tenant, name).is_ok())
    }

    fn reason(&self, arguments: &Value) -> String {
        let paths = self.act.paths(arguments);
        let named: Vec<String> = paths.iter().take(5).map(|path| format!("`{path}`")).collect();
        let more = if paths.len() > 5 { format!(" and {} more", paths.len() - 5) } else { String::new() };
        let does = match self.act {
            Act::Read => "reads",
            Act::List => "lists",
            Act::Grep => "searches",
            Act::Write => "writes the whole file",
            Act::Edit => "replaces text in",
            Act::Patch => "patches",
        };
        format!("it {does} {}{more}", named.join(", "))
    }

    fn touches(&self, arguments: &Value, scene: Scene<'_>) -> Touches {
        Touches { paths: self.paths(arguments, scene), ..Touches::default() }
    }

    fn run(&self, invocation: Invocation, _: Arc<dyn Output>) -> ToolRun {
        let (spaces, act) = (self.spaces.clone(), self.act);
        let mode = invocation.policy.as_ref().and_then(|policy| policy.sandbox);
        Box::pin(async move {
            // It may have been said since the call was judged.
            if act.changes() && mode == Some(SandboxMode::ReadOnly) {
                return ToolEnd::Failed("nothing may be changed here: the sandbox is read-only".to_owned());
            }
            let stop = Stop::default();
            let _given_up = stop.on_drop();
            let work = blocking({
                let stop = stop.clone();
                move || perform(act, &spaces, &invocation, &stop)
            });
            if act.changes() {
                return work.await;
            }
            tokio::pin!(work);
            tokio::select! {
                end = &mut work => return end,
                () = tokio::time::sleep(WALK_TIME) => stop.ask(),
            }
            work.await
        })
    }
}

fn perform(act: Act, spaces: &Workspaces, invocation: &Invocation, stop: &Stop) -> ToolEnd {
    let workspace = match spaces.resolve(invocation.key, invocation.workspace.as_deref()) {
        Ok(workspace) => workspace,
        Err(why) => return ToolEnd::Failed(format!("the workspace {why}")),
    };
    let at = At { spaces, workspace: &workspace, invocation, stop };
    match act.perform(&at, &invocation.arguments) {
        Ok(said) => ToolEnd::Done(said),
        Err(torn @ Fault::Torn(_)) => ToolEnd::Unknown(torn.to_string()),
        Err(why) => ToolEnd::Failed(why.to_string()),
    }
}

/// Where and in whose name a call is run.
struct At<'a> {
    spaces: &'a Workspaces,
    workspace: &'a Workspace,
    invocation: &'a Invocation,
    stop: &'a Stop,
}

impl At<'_> {
    /// What a walk passes over.
    fn withheld(&self) -> Withheld<'_> {
        Withheld::new(&self.invocation.tool, self.invocation.policy.as_ref())
    }

    fn change(&self, plan: impl FnOnce() -> Result<Plan, Fault>) -> Result<String, Fault> {
        let Invocation { key, operation, run, .. } = *self.invocation;
        // Who can take it back later is a run, and only what was done for it.
        let plan = || plan().map(|plan| Plan { keeps: run.is_some(), ..plan });
        let notes =
            self.spaces.notes(key.tenant).map_err(|why| Fault::Said(format!("the tenant's directory {why}")))?;
        change(&notes, operation, self.workspace, self.stop, plan)
    }
}

// ---- what is to be changed -----------------------------------------------------------------------

#[derive(Debug, Deserialize)]
struct Write {
    path: String,
    content: String,
}

fn plan_write(workspace: &Workspace, arguments: &Write) -> Result<Plan, Fault> {
    let file = found(workspace, &arguments.path, true)?;
    let after = arguments.content.clone().into_bytes();
    let verb = if file.held.is_some() { "wrote" } else { "made" };
    let said = format!("{verb} {}: {} bytes", file.path.display(), after.len());
    Ok(planned(vec![file.becomes(Some(after))], said))
}

fn plan_edit(workspace: &Workspace, arguments: &edit::Arguments) -> Result<Plan, Fault> {
    let file = found(workspace, &arguments.path, true)?;
    let held = file.held()?;
    let (after, count) =
        edit::edit(held, arguments).map_err(|why| Fault::Said(format!("`{}`: {why}", arguments.path)))?;
    let places = if count == 1 { "1 place".to_owned() } else { format!("{count} places") };
    let said = format!("changed {} in {places}", file.path.display());
    Ok(planned(vec![file.becomes(Some(after))], said))
}

#[derive(Debug, Deserialize)]
struct Patch {
    patch: String,
}

fn plan_patch(workspace: &Workspace, arguments: &Patch) -> Result<Plan, Fault> {
    let parts = patch::parse(&arguments.patch).map_err(|why| Fault::Said(why.to_string()))?;
    let (mut files, mut removed, mut said) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        match part {
            patch::Part::Add { path, text } => {
                let file = found(workspace, &path, false)?.not_there()?;
                said.push(format!("made {}", file.path.display()));
                files.push(file.becomes(Some(text.into_bytes())));
            }
            patch::Part::Delete { path } => {
                let file = found(workspace, &path, false)?;
                file.held()?;
                said.push(format!("removed {}", file.path.display()));
                removed.push(file.becomes(None));
            }
            patch::Part::Update { path, moved, hunks } => {
                // The name of a link cannot be moved without leaving the file where it is.
                let file = found(workspace, &path, moved.is_none())?;
                let text = patch::apply(file.held()?, &hunks).map_err(|why| Fault::Said(format!("`{path}`: {why}")))?;
                let Some(moved) = moved else {
                    said.push(format!("changed {}", file.path.display()));
                    files.push(file.becomes(Some(text)));
                    continue;
                };
                let to = found(workspace, &moved, false)?.not_there()?;
                said.push(format!("moved {} to {}", file.path.display(), to.path.display()));
                let mode = file.held.as_ref().map(|held| held.mode);
                files.push(FileChange { mode, ..to.becomes(Some(text)) });
                removed.push(file.becomes(None));
            }
        }
    }
    // What is written can be undone; what is removed comes last.
    files.extend(removed);
    if let Some((one, other)) = overlap(&files) {
        return Err(Fault::Said(format!(
            "the patch changes `{one}` and `{other}`: each file once, and none in another"
        )));
    }
    Ok(planned(files, said.join("\n")))
}

/// Two changes of one file, or of a file and of what would be in it.
fn overlap(files: &[FileChange]) -> Option<(Display<'_>, Display<'_>)> {
    let mut paths: Vec<_> = files.iter().map(|file| &file.path).collect();
    paths.sort();
    let twice = paths.windows(2).find(|pair| pair[1].starts_with(pair[0]))?;
    Some((twice[0].display(), twice[1].display()))
}

fn planned(files: Vec<FileChange>, said: String) -> Plan {
    let diff = shown::diff(&files);
    let said = if diff.is_empty() { format!("{said}\n[nothing is different]\n") } else { format!("{said}\n{diff}") };
    Plan { files, said, keeps: false }
}

/// A file that is named in a call, as it is now.
struct Found {
    path: std::path::PathBuf,
    held: Option<place::Held>,
}

fn found(workspace: &Workspace, path: &str, follow: bool) -> Result<Found, Fault> {
    let path = real(workspace.dir(), &Down::new(path)?, follow)?;
    unprotected(&path)?;
    let held = match Named::find(workspace.dir(), &path)? {
        Some(named) => named.read()?,
        None => None,
    };
    Ok(Found { path, held })
}

impl Found {
    fn held(&self) -> Result<&[u8], Fault> {
        let held = self.held.as_ref().map(|held| held.bytes.as_slice());
        held.ok_or_else(|| Fault::Missing(self.path.display().to_string()))
    }

    fn not_there(self) -> Result<Self, Fault> {
        match self.held {
            Some(_) => Err(Fault::Taken(self.path.display().to_string())),
            None => Ok(self),
        }
    }

    fn becomes(self, after: Option<Vec<u8>>) -> FileChange {
        FileChange::new(self.path, self.held, after)
    }
}

#[cfg(test)]
mod tests;
