//! What a server was configured with and nobody else may read: taken out of whatever comes back from it.
//!
//! A server that is handed a token can say it, in an error, on stderr or in a result. So every text of a server goes
//! through [`Secrets::hide`] before it is logged, stored or shown.
//! Agents ([`crate::models::acp`]) are handed tokens the same way: what they say in errors and on stderr goes through
//! it as well.
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

    /// Each of them, in each of its forms, the longer ones first.
    pub fn values(&self) -> impl Iterator<Item = &SecretString> {
        self.0.iter()
    }

    /// The text without them.
    pub fn hide(&self, text: &str) -> String {
        let found = |secret: &&SecretString| text.contains(secret.expose_secret());
        self.0.iter().filter(found).fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), HIDDEN))
    }

    /// A line that was read up to some length. Of one that `is_cut` the end is missing: a secret may stand across it,
    /// and its beginning is no less secret.
    pub fn logged(&self, line: &[u8], is_cut: bool, chars: usize) -> String {
        let mut text = self.hide(&String::from_utf8_lossy(line));
        if is_cut {
            // Half a character at the end.
            text.truncate(text.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
            let begun = self.0.iter().filter_map(|secret| begun(&text, secret.expose_secret())).min();
            if let Some(at) = begun {
                text.replace_range(at.., HIDDEN);
            }
        }
        cut(&plain(&text), chars)
    }

    /// A short text of the server, for people: one line, without secrets and control characters.
    pub fn line(&self, text: &str, chars: usize) -> String {
        cut(&plain(&self.hide(text)), chars)
    }
}

/// Where at the end of the text a secret begins that is not there whole.
fn begun(text: &str, secret: &str) -> Option<usize> {
    let mut ends = secret.char_indices().rev().map(|(end, _)| end).filter(|end| *end > 0);
    ends.find(|end| text.ends_with(&secret[..*end])).map(|end| text.len() - end)
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

    #[test]
    fn a_secret_across_a_cut_is_hidden_too() {
        let secrets = secrets(&["hush-hush-é"]);
        assert_eq!(secrets.line("a hush-hush-é", 6), "a [hid…");
        for (line, shown) in [("a hush-hu", "a [hidden]"), ("hush-hush-é hush-hush-", "[hidden] [hidden]")] {
            assert_eq!(secrets.logged(line.as_bytes(), true, 100), shown);
        }
        assert_eq!(secrets.logged(&"a hush-hush-é".as_bytes()[..13], true, 100), "a [hidden]");
        assert_eq!(secrets.logged(b"a hush-hu", false, 100), "a hush-hu");
    }
}
