//! What must hold of everything that this crate reads. Each function panics where it does not hold: for the targets in
//! `fuzz/`, and for tests with random and with damaged input.

use raddle_domain::policy::Policy;

#[cfg(feature = "jwt")]
pub use crate::auth::fuzzing::{key_set, token};
pub use crate::{
    client::followed,
    gateway::fuzzing::{cursor, request_body},
    mcp::fuzzing::{mcp_answer, mcp_tools},
    models::fuzzing::{acp_updates, anthropic_stream, openai_stream},
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
        price_file patch_text script mcp_answer mcp_tools acp_updates
    );
    #[cfg(feature = "jwt")]
    holds!(token key_set);
    /// The targets need another toolchain, and are not built where the tests run: what would keep one from being built,
    /// or from being run, is looked for here.
    #[test]
    fn every_target_is_built_has_seeds_and_is_held_here_too() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        let (manifest, page) = (read("fuzz/Cargo.toml"), read("fuzz/README.md"));
        let files = ["domain/src/fuzzing.rs", "actors/src/store/fuzzing.rs", "src/fuzzing.rs"].map(read);
        let held =
            files.iter().flat_map(|text| text.split("holds!(").skip(1)).filter_map(|rest| rest.split(')').next());
        let mut held: Vec<String> = held.flat_map(str::split_whitespace).map(str::to_owned).collect();
        held.retain(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        let listed = |dir: &str, end: &str| -> Vec<String> {
            let names =
                fs::read_dir(root.join(dir)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.map(|name| name.strip_suffix(end).unwrap_or(&name).to_owned()).collect();
            names.sort();
            names
        };
        held.sort();
        assert_eq!(listed("fuzz/fuzz_targets", ".rs"), held);
        assert_eq!(listed("fuzz/seeds", ""), held);
        for name in &held {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not built");
            assert!(
                read(&format!("fuzz/fuzz_targets/{name}.rs")).contains(&format!("::fuzzing::{name}(data)")),
                "{name}"
            );
            assert!(page.contains(&format!("`{name}`")), "fuzz/README.md does not name {name}");
        }
    }
}
