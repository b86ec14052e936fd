//! The plan of a run: a todo list, and what comes next.

use clap::Args;
use raddle_domain::run::RunStep;
use serde_json::{Value, json};

use super::{brief, read_file};
use crate::cli::{Failure, Remote, say, say_json};

/// The marks in the boxes of a list, and what they mean.
const BOXES: [(&str, &str); 5] =
    [("[ ]", "pending"), ("[x]", "done"), ("[X]", "done"), ("[~]", "in_progress"), ("[!]", "blocked")];

/// Make a todo list the plan: lines, with boxes such as `- [x] done` or without, or JSON as the API takes it.
#[derive(Debug, Args)]
pub struct Todos {
    run: String,
    /// Where the list is; `-` is stdin
    #[arg(default_value = "-")]
    file: String,
    /// Let steps stay that are not in the list
    #[arg(long)]
    merge: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
pub struct Next {
    run: String,
    /// Only say it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    remote: Remote,
}

impl Todos {
    pub async fn run(self) -> Result<(), Failure> {
        let todos = todos(&read_file(&self.file)?).map_err(|why| Failure::Failed(format!("{}: {why}", self.file)))?;
        if todos.is_empty() && !self.merge {
            return Err(Failure::Failed(format!("{}: the list is empty, and would leave no plan", self.file)));
        }
        let run = self.remote.client()?.sync_todos(&self.run, &todos, !self.merge).await?;
        if self.remote.json { say_json(&run) } else { run.steps.iter().try_for_each(|step| say(&line(step))) }
    }
}

impl Next {
    pub async fn run(self) -> Result<(), Failure> {
        let next = self.remote.client()?.drive_run(&self.run, self.dry_run).await?;
        if self.remote.json {
            return say_json(&next);
        }
        let selected = match (&next.selected_step_id, &next.selected_task_id) {
            (Some(step), _) => format!("step {}", brief(step)),
            (_, Some(task)) => format!("task {}", brief(task)),
            (None, None) => "-".to_owned(),
        };
        say(&format!("{}  {selected}  {}", next.target_status.as_str(), brief(&next.why_next_step)))
    }
}

/// A step in a list.
pub fn line(step: &RunStep) -> String {
    format!("{:<11}  {}  {}", step.status.as_str(), brief(&step.step_id), brief(&step.title))
}

/// The entries of a todo list.
fn todos(text: &str) -> Result<Vec<Value>, String> {
    let text = text.trim();
    if !text.starts_with(['[', '{']) || BOXES.iter().any(|(mark, _)| text.starts_with(mark)) {
        return Ok(text.lines().filter_map(todo).collect());
    }
    match serde_json::from_str(text).map_err(|why| format!("not JSON: {why}"))? {
        Value::Array(todos) => Ok(todos),
        Value::Object(mut object) => match object.remove("todos") {
            Some(Value::Array(todos)) if object.is_empty() => Ok(todos),
            _ => Err("an object has to be `{\"todos\": […]}`".to_owned()),
        },
        _ => Err("not a list".to_owned()),
    }
}

/// A line of a list; none where nothing is to be done, as in a heading.
fn todo(line: &str) -> Option<Value> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let text = bullet(line);
    let marked = BOXES.iter().find_map(|(mark, status)| Some((text.strip_prefix(mark)?, *status)));
    let (text, status) = marked.unwrap_or((text, "pending"));
    let text = text.trim();
    (!text.is_empty()).then(|| json!({ "content": text, "status": status }))
}

/// What follows the mark of a list, `-`, `*`, `+`, `1.` or `1)`.
fn bullet(line: &str) -> &str {
    let digits = line.trim_start_matches(|char: char| char.is_ascii_digit());
    let after = match digits.len() < line.len() {
        true => digits.strip_prefix(['.', ')']),
        false => line.strip_prefix(['-', '*', '+']),
    };
    after.filter(|rest| rest.starts_with(char::is_whitespace)).unwrap_or(line).trim_start()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_boxes_are_a_todo_list() {
        let text =
            "# Release\n- [x] write it\n* [~] test it\n2) [ ] ship it\n\n[!] wait for the key\n-5 is no bullet\n-\n";
        let list = [
            ("write it", "done"),
            ("test it", "in_progress"),
            ("ship it", "pending"),
            ("wait for the key", "blocked"),
            ("-5 is no bullet", "pending"),
            ("-", "pending"),
        ];
        let list = list.map(|(content, status)| json!({ "content": content, "status": status }));
        assert_eq!(todos(text).unwrap(), list);
        assert_eq!(todos("[ ] a").unwrap(), [json!({ "content": "a", "status": "pending" })]);
    }

    #[test]
    fn json_is_taken_as_it_is() {
        let list = [json!({ "id": "a", "content": "b" })];
        assert_eq!(todos(r#" [{"id": "a", "content": "b"}]"#).unwrap(), list);
        assert_eq!(todos(r#"{"todos": [{"id": "a", "content": "b"}]}"#).unwrap(), list);
        assert!(todos(r#"{"todos": 1}"#).is_err());
        assert!(todos(r#"{"todo": []}"#).is_err());
        assert!(todos(r#"{"todos": [], "replace": false}"#).is_err(), "what would not be sent is not taken");
        assert!(todos("[{").is_err());
    }
}
