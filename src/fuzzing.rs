//! What must hold of everything that this crate reads. Each function panics where it does not hold: for the targets in
//! `fuzz/`, and for tests with random and with damaged input.

use raddle_domain::policy::Policy;

pub use crate::{
    client::followed,
    gateway::fuzzing::{cursor, request_body},
    models::fuzzing::{anthropic_stream, openai_stream},
};
use crate::{
    config::Config,
    mcp,
    models::scripted::script::Script,
    policy::{file, shell},
    prices,
    sse::{Bounds, Event, Oversize, Parser},
    tools::files::patch,
};

fn events(pieces: &[&[u8]], bounds: Bounds) -> (Vec<Event>, Result<(), Oversize>, Option<String>) {
    let (mut parser, mut events) = (Parser::new(bounds), Vec::new());
    let end = pieces.iter().try_for_each(|piece| parser.push(piece, &mut events));
    (events, end, parser.last_id().map(str::to_owned))
}

/// A stream of events: the same however it is split.
pub fn sse(data: &[u8]) {
    for bounds in [Bounds::default(), Bounds { line_bytes: 12, event_bytes: 9 }] {
        let whole = events(&[data], bounds);
        let bytes: Vec<_> = data.chunks(1).collect();
        assert_eq!(events(&bytes, bounds), whole);
        for at in 0..data.len().min(512) {
            let (one, other) = data.split_at(at);
            assert_eq!(events(&[one, other], bounds), whole, "split at {at}");
        }
    }
}

/// The text of a command: one that is judged is judged the same when each of its words is quoted.
pub fn shell_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let script = shell::read(text);
    for words in script.commands.iter().flatten() {
        let quoted: Vec<_> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\"'\"'"))).collect();
        // Some words are judged only as they stand there, and some texts are too long with quotes.
        if let Ok(again) = shell::read(&quoted.join(" ")).commands {
            assert_eq!(again, [words.as_slice()], "{text}");
        }
        let _ = shell::words(words);
    }
}

/// A file of rules: what is read is a layer that can be kept.
pub fn policy_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(policy) = file::parse(text) else { return };
    let json = serde_json::to_vec(&policy).expect("rules are JSON");
    let again: Policy = serde_json::from_slice(&json).expect("what was written is read");
    assert_eq!(again, policy);
    crate::policy::check(&again).expect("rules that were checked");
}

/// A configuration file: what is shown of it reads back to the same settings, unless a secret is hidden in it.
pub fn config_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok((_, settings)) = Config::explain(Some(text), [], []) else { return };
    let shown: Vec<_> = settings.iter().map(ToString::to_string).collect();
    if let Ok((_, again)) = Config::explain(Some(&shown.join("\n")), [], []) {
        let values = |settings: &[crate::config::Setting]| -> Vec<_> {
            settings.iter().map(|setting| (setting.key.clone(), setting.shown())).collect()
        };
        assert_eq!(values(&again), values(&settings));
    }
}

/// A file of MCP servers.
pub fn mcp_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = mcp::config::read(text, &|name| (name != "UNSET").then(|| "value".to_owned()));
}

/// A file of prices.
pub fn price_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = prices::parse("prices", text);
}

/// A patch: the paths that are judged are those of its parts.
pub fn patch_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let named = patch::paths(text);
    let Ok(parts) = patch::parse(text) else { return };
    for part in &parts {
        let touched = match part {
            patch::Part::Add { path, .. } | patch::Part::Delete { path } => vec![path],
            patch::Part::Update { path, moved, .. } => std::iter::once(path).chain(moved).collect(),
        };
        assert!(touched.iter().all(|path| named.contains(path)), "{touched:?} are not among {named:?}");
        if let patch::Part::Update { hunks, .. } = part {
            let _ = patch::apply(data, hunks);
            let _ = patch::apply(b"a\nb\r\nc", hunks);
        }
    }
}

/// What the offline model is told to do.
pub fn script(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Script::parse(text);
}

#[cfg(test)]
mod tests {
    include!("../fuzz/hold.rs");
    holds!(
        request_body cursor openai_stream anthropic_stream sse followed shell_text policy_file config_file mcp_config
        price_file patch_text script
    );
}
