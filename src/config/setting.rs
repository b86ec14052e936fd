//! A key with the value in force, and where that came from; how it is shown.
//!
//! What is shown is a file that reads back to the same configuration, except for secrets: one that is set is shown as
//! [`HIDDEN`], which no secret may be, so that a file which was made of what was shown says what is missing from it.

use std::{collections::BTreeMap, fmt};

use serde::{Serialize, Serializer, ser::SerializeStruct};
use toml::{
    Value,
    de::{DeTable, DeValue},
};

use crate::log;

/// What is shown in place of a secret.
pub const HIDDEN: &str = "(set)";

/// One key.
#[derive(Clone)]
pub struct Setting {
    pub key: String,
    /// What is in force, in the form that a file has it in; `None` where nothing is set and nothing is usual.
    pub(super) value: Option<Value>,
    pub is_secret: bool,
    pub source: Source,
}

/// Where the value of a key came from, as precisely as somebody needs who wants to change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    File {
        line: Option<usize>,
    },
    /// Holds the variable.
    Environment(String),
    /// Holds the flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File { line: Some(line) } => write!(f, "line {line} of the file"),
            Self::File { line: None } => f.write_str("the file"),
            Self::Environment(variable) => write!(f, "the variable {variable}"),
            Self::Flag(flag) => write!(f, "the flag {flag}"),
        }
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Setting {
    /// What may be shown of the value. A text in which a secret is found is as secret as one that is known to be.
    pub fn shown(&self) -> Option<Value> {
        let value = self.value.as_ref()?;
        match self.is_secret || log::holds_secret(&value.to_string()) {
            true => Some(HIDDEN.into()),
            false => Some(value.clone()),
        }
    }
}

/// A line of TOML.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |part: &str| match !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        {
            true => part.to_owned(),
            false => Value::from(part).to_string(),
        };
        let key = self.key.split('.').map(quoted).collect::<Vec<_>>().join(".");
        match self.shown() {
            Some(value) => write!(f, "{key} = {value}"),
            None => write!(f, "# {key} is not set"),
        }
    }
}

impl Serialize for Setting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Setting", 4)?;
        fields.serialize_field("key", &self.key)?;
        fields.serialize_field("value", &self.shown())?;
        fields.serialize_field("secret", &self.is_secret)?;
        fields.serialize_field("origin", &self.source.to_string())?;
        fields.end()
    }
}

/// In which line of a file each key stands. Empty for what is no TOML.
pub(super) fn lines(file: &str) -> BTreeMap<String, usize> {
    fn below(prefix: &str, table: &DeTable<'_>, file: &str, lines: &mut BTreeMap<String, usize>) {
        for (name, value) in table {
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            match value.get_ref() {
                DeValue::Table(inner) => below(&key, inner, file, lines),
                _ => {
                    let before = file.get(..name.span().start).unwrap_or_default();
                    lines.insert(key, 1 + before.matches('\n').count());
                }
            }
        }
    }
    let mut lines = BTreeMap::new();
    if let Ok(table) = DeTable::parse(file) {
        below("", table.get_ref(), file, &mut lines);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Config, ConfigError},
        *,
    };

    type Env<'a> = &'a [(&'a str, &'a str)];

    fn explain(
        file: &str,
        env: Env<'_>,
        flags: &[(&'static str, &str)],
    ) -> Result<(Config, Vec<Setting>), ConfigError> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::explain(Some(file), env, flags.iter().map(|(key, value)| (*key, (*value).to_owned())))
    }

    fn of(settings: &[Setting], key: &str) -> (String, String) {
        let setting = settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("{key}"));
        (setting.to_string(), setting.source.to_string())
    }

    /// One of everything, and what of it is secret.
    const FILE: &str = r#"
data_dir = "/srv/d"
limits.loaded_threads = 7
sandbox.network_ports = ["80", "443"]
[model.openai]
api_key = "(set)"
[model.acp.helper]
command = "helper"
args = ["--acp"]
[hooks.out]
kind = "webhook"
url = "http://h/hush-hush"
secret = "(set)"
[hooks.file]
kind = "jsonl"
path = "/tmp/x"
"#;
    const SECRETS: Env<'static> = &[
        ("RADDLE_MODEL_OPENAI_API_KEY", "hush-hush-key"),
        ("RADDLE_HOOKS_OUT_SECRET", "hush-hush-secret-of-24-bytes"),
        ("RADDLE_HOOKS_OUT_URL", "http://h/hush-hush"),
    ];

    #[test]
    fn every_value_says_where_it_came_from() {
        let env = [("RADDLE_LOG", "debug"), ("RADDLE_TOOLS_FILES", "false")];
        let (_, settings) = explain(FILE, &[SECRETS, &env].concat(), &[("listen", "127.0.0.1:1")]).unwrap();
        let line = |key| of(&settings, key);
        let said = |shown: &str, source: &str| (shown.to_owned(), source.to_owned());
        assert_eq!(line("listen"), said("listen = \"127.0.0.1:1\"", "the flag --listen"));
        assert_eq!(line("data_dir"), said("data_dir = \"/srv/d\"", "line 2 of the file"));
        assert_eq!(line("workspaces.root"), said("workspaces.root = \"/srv/d/workspaces\"", "the default"));
        assert_eq!(line("limits.loaded_threads"), said("limits.loaded_threads = 7", "line 3 of the file"));
        assert_eq!(line("tools.files"), said("tools.files = false", "the variable RADDLE_TOOLS_FILES"));
        assert_eq!(line("log.level"), said("log.level = \"debug\"", "the variable RADDLE_LOG"));
        assert_eq!(line("log.format"), said("log.format = \"text\"", "the default"));
        assert_eq!(line("model.acp.helper.command").1, "line 8 of the file");
        assert_eq!(line("prices.file"), said("# prices.file is not set", "the default"));
    }

    #[test]
    fn what_is_shown_reads_back_to_the_same() {
        for (file, env) in [("", &[][..]), (FILE, SECRETS)] {
            let (config, settings) = explain(file, env, &[]).unwrap();
            let shown: Vec<_> = settings.iter().map(ToString::to_string).collect();
            let (again, told) = explain(&shown.join("\n"), env, &[]).unwrap();
            assert_eq!(told.iter().map(ToString::to_string).collect::<Vec<_>>(), shown);
            assert_eq!(format!("{again:?}"), format!("{config:?}"));
        }
    }

    #[test]
    fn a_secret_is_shown_as_set_and_what_was_shown_is_no_secret() {
        let (config, settings) = explain(FILE, SECRETS, &[]).unwrap();
        let shown = settings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(!shown.contains("hush"), "{shown}");
        assert!(!serde_json::to_string(&settings).unwrap().contains("hush"));
        assert_eq!(of(&settings, "model.openai.api_key").0, "model.openai.api_key = \"(set)\"");
        assert_eq!(config.secrets.len(), 3);
        let why = explain(&shown, &[], &[]).unwrap_err().to_string();
        assert!(why.contains("`model.openai.api_key`") && why.contains("(set)"), "{why}");
    }

    #[test]
    fn a_text_with_a_secret_in_it_is_one() {
        let (_, settings) = explain("model.openai.base_url = \"http://me:hush-hush@h/v1\"", &[], &[]).unwrap();
        assert_eq!(of(&settings, "model.openai.base_url").0, "model.openai.base_url = \"(set)\"");
    }

    #[test]
    fn every_key_that_is_named_like_a_secret_is_one() {
        let named = ["api_key", "admin_key", "key", "secret", "token", "password"];
        let file = "[hooks.x]\nkind = \"webhook\"\nurl = \"http://h\"\nsecret_file = \"/f\"";
        let (_, settings) = explain(file, &[], &[]).unwrap();
        let is_named = |setting: &&Setting| named.contains(&setting.key.rsplit('.').next().unwrap_or_default());
        let found: Vec<_> = settings.iter().filter(is_named).collect();
        assert!(found.len() >= 3, "{found:?}");
        for setting in found {
            assert!(setting.is_secret, "ask for `{}` as a secret", setting.key);
        }
    }
}
