//! What a server was configured with and nobody else may read: taken out of whatever comes back from it.
//!
//! A server that is handed a token can say it, in an error, on stderr or in a result. So every text of a server goes
//! through [`Secrets::hide`] before it is logged, stored or shown.
//! Absent on purpose: short values. `1` and `true` are in many texts, and hide nothing.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// What shorter values are: words, not secrets.
const LEAST_BYTES: usize = 8;

const HIDDEN: &str = "[hidden]";

/// The values that do not leave the process but to their server.
#[derive(Clone, Default)]
pub struct Secrets(Vec<SecretString>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Adds a value, also in the form that it has inside a JSON text.
    pub fn add(&mut self, value: &str) {
        if value.len() < LEAST_BYTES {
            return;
        }
        let quoted = serde_json::Value::from(value).to_string();
        for form in [value, quoted.trim_matches('"')] {
            if !self.0.iter().any(|known| known.expose_secret() == form) {
                self.0.push(form.to_owned().into());
            }
        }
        // A longer one may hold a shorter one, of which a part would be left.
        self.0.sort_by_key(|known| std::cmp::Reverse(known.expose_secret().len()));
    }

    /// The text without them.
    pub fn hide(&self, text: &str) -> String {
        let found = |secret: &&SecretString| text.contains(secret.expose_secret());
        self.0.iter().filter(found).fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), HIDDEN))
    }

    /// A short text of the server, for people: one line, without secrets and control characters.
    pub fn line(&self, text: &str, chars: usize) -> String {
        cut(&plain(&self.hide(text)), chars)
    }
}

/// The text as one line that cannot drive a terminal.
pub fn plain(text: &str) -> String {
    let words = text.split(|char: char| char.is_control() || char == '\u{2028}' || char == '\u{2029}');
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The beginning of the text.
pub fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[&str]) -> Secrets {
        let mut secrets = Secrets::default();
        values.iter().for_each(|value| secrets.add(value));
        secrets
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_stands_also_inside_json() {
        let secrets = secrets(&["tok\"en\\1234", "longer-tok\"en\\1234"]);
        assert_eq!(secrets.hide("a tok\"en\\1234 b longer-tok\"en\\1234"), "a [hidden] b [hidden]");
        let json = serde_json::json!({"TOKEN": "tok\"en\\1234"}).to_string();
        assert_eq!(secrets.hide(&json), r#"{"TOKEN":"[hidden]"}"#);
        assert!(!format!("{secrets:?}").contains("1234"));
    }

    #[test]
    fn a_word_is_no_secret() {
        assert_eq!(secrets(&["true", "1", ""]).hide("true 1"), "true 1");
    }

    #[test]
    fn a_line_is_one_line_and_short() {
        let secrets = secrets(&["hush-hush"]);
        assert_eq!(secrets.line("a\r\nb\u{1b}[2J hush-hush", 100), "a b [2J [hidden]");
        assert_eq!(secrets.line("éééé", 3), "ééé…");
    }
}
