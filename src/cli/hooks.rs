//! `raddle hooks`: where events are sent, and how that goes.

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Failure, Remote, plain, say};

/// List the hooks that this tenant's events go through.
#[derive(Debug, Args)]
pub struct Hooks {
    #[command(flatten)]
    remote: Remote,
}

/// The list, as far as it is shown.
#[derive(Deserialize)]
struct Listed {
    data: Vec<Hook>,
}

#[derive(Deserialize)]
struct Hook {
    name: String,
    kind: String,
    events: Vec<String>,
    behind: u64,
    delivered: u64,
    skipped: u64,
    failing_since: Option<String>,
    last_error: Option<String>,
}

impl Hooks {
    pub async fn run(self) -> Result<(), Failure> {
        let listed: Box<RawValue> = self.remote.client()?.hooks().await?;
        if self.remote.json {
            return say(listed.get());
        }
        let listed: Listed = serde_json::from_str(listed.get()).map_err(|err| Failure::Failed(err.to_string()))?;
        listed.data.iter().try_for_each(|hook| say(&line(hook)))
    }
}

fn line(hook: &Hook) -> String {
    let Hook { name, kind, events, behind, delivered, skipped, failing_since, last_error } = hook;
    let mut line = format!("{name:<16}  {kind:<7}  behind {behind}  delivered {delivered}");
    if *skipped > 0 {
        line += &format!("  skipped {skipped}");
    }
    line += &format!("  {}", events.join(","));
    if let Some(since) = failing_since {
        line += &format!("  failing since {since}: {}", last_error.as_deref().unwrap_or("for an unknown reason"));
    }
    plain(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_shown_while_it_lasts() {
        let hook = |failing: bool| Hook {
            name: "audit".to_owned(),
            kind: "unix".to_owned(),
            events: vec!["turn.*".to_owned(), "job.*".to_owned()],
            behind: 3,
            delivered: 7,
            skipped: 0,
            failing_since: failing.then(|| "2025-01-01T00:00:00.000Z".to_owned()),
            last_error: Some("nobody listens\u{1b}".to_owned()),
        };
        assert_eq!(line(&hook(false)), "audit             unix     behind 3  delivered 7  turn.*,job.*");
        assert!(line(&hook(true)).ends_with("  failing since 2025-01-01T00:00:00.000Z: nobody listens"));
    }
}
