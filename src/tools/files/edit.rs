//! `edit_file`: one text in a file in place of another. Pure, and about bytes: what is not UTF-8 stays what it is.
//!
//! Line ends stay those of the file. Models write LF; in a file whose lines all end in CR LF their texts are meant
//! with CR LF.

use serde::Deserialize;

/// Places that are named when there are too many.
const NAMED: usize = 10;

#[derive(Debug, Deserialize)]
pub struct Arguments {
    pub path: String,
    pub old_string: String,
    pub new_string: String,
    #[serde(default)]
    pub replace_all: bool,
}

/// Why a text was not replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEdit {
    #[error("`old_string` and `new_string` are the same")]
    Same,
    #[error("`old_string` is not in the file; read it again, and give its text exactly, without line numbers")]
    Absent,
    #[error(
        "`old_string` is in the file {count} times, on lines {lines}: give more of what is around it, or set `replace_all`"
    )]
    Ambiguous { count: usize, lines: String },
}

/// What the file is to hold, and how often the text was replaced.
pub fn edit(held: &[u8], arguments: &Arguments) -> Result<(Vec<u8>, usize), NoEdit> {
    let is_crlf = ends_lines_with_crlf(held);
    let meant = |text: &str| if is_crlf { text.replace("\r\n", "\n").replace('\n', "\r\n") } else { text.to_owned() };
    let (old, new) = (meant(&arguments.old_string), meant(&arguments.new_string));
    if old == new {
        return Err(NoEdit::Same);
    }
    let places = places(held, old.as_bytes());
    match places.len() {
        0 => return Err(NoEdit::Absent),
        1 => {}
        _ if arguments.replace_all => {}
        count => {
            let mut lines: Vec<String> =
                places.iter().take(NAMED).map(|at| (1 + count_of(&held[..*at], b'\n')).to_string()).collect();
            if count > NAMED {
                lines.push("…".to_owned());
            }
            return Err(NoEdit::Ambiguous { count, lines: lines.join(", ") });
        }
    }
    let (mut text, mut from, mut count) = (Vec::with_capacity(held.len() + new.len()), 0, 0);
    for at in places {
        // Of places that overlap, the first is replaced.
        if at >= from {
            text.extend_from_slice(&held[from..at]);
            text.extend_from_slice(new.as_bytes());
            (from, count) = (at + old.len(), count + 1);
        }
    }
    text.extend_from_slice(&held[from..]);
    Ok((text, count))
}

/// Whether every line end is CR LF, and there is one.
pub fn ends_lines_with_crlf(held: &[u8]) -> bool {
    let ends = count_of(held, b'\n');
    ends > 0 && held.windows(2).filter(|pair| pair == b"\r\n").count() == ends
}

fn count_of(bytes: &[u8], byte: u8) -> usize {
    bytes.iter().filter(|one| **one == byte).count()
}

/// Everywhere where it begins, places that overlap among them.
fn places(held: &[u8], text: &[u8]) -> Vec<usize> {
    let Some(first) = text.first() else { return Vec::new() };
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(next) = held[from..].iter().position(|byte| byte == first) {
        if held[from + next..].starts_with(text) {
            found.push(from + next);
        }
        from += next + 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(held: &[u8], old: &str, new: &str, replace_all: bool) -> Result<(Vec<u8>, usize), NoEdit> {
        let [path, old_string, new_string] = ["f", old, new].map(str::to_owned);
        edit(held, &Arguments { path, old_string, new_string, replace_all })
    }

    fn text(held: &str, old: &str, new: &str) -> String {
        String::from_utf8(done(held.as_bytes(), old, new, false).unwrap().0).unwrap()
    }

    #[test]
    fn a_text_is_replaced_where_it_is_the_only_one() {
        assert_eq!(text("a b c", "b", "x"), "a x c");
        assert_eq!(text("a\nb", "b", "b\n"), "a\nb\n");
        assert_eq!(done(b"a", "x", "y", false), Err(NoEdit::Absent));
        assert_eq!(done(b"a", "a", "a", false), Err(NoEdit::Same));
    }

    #[test]
    fn a_text_that_is_there_twice_is_named_with_its_lines() {
        let why = done(b"x\ny\nx\n", "x", "z", false).unwrap_err();
        assert!(why.to_string().contains("2 times, on lines 1, 3"), "{why}");
        assert_eq!(done(b"x\ny\nx\n", "x", "z", true), Ok((b"z\ny\nz\n".to_vec(), 2)));
        // Also where one begins inside another: either could be meant.
        assert!(matches!(done(b"aaa", "aa", "b", false), Err(NoEdit::Ambiguous { count: 2, .. })));
        assert_eq!(done(b"aaa", "aa", "b", true), Ok((b"ba".to_vec(), 1)));
        let many = "x\n".repeat(50);
        let why = done(many.as_bytes(), "x", "y", false).unwrap_err().to_string();
        assert!(why.contains("50 times, on lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …"), "{why}");
    }

    #[test]
    fn line_ends_stay_those_of_the_file() {
        assert_eq!(text("a\r\nb\r\nc\r\n", "a\nb", "x\ny"), "x\r\ny\r\nc\r\n");
        assert_eq!(text("a\r\nb\r\n", "b", "b1\nb2"), "a\r\nb1\r\nb2\r\n");
        assert_eq!(text("a\r\nb\r\n", "a\r\nb", "c\r\nd"), "c\r\nd\r\n");
        // Where they are mixed, nobody knows what is meant but who wrote it.
        assert_eq!(text("a\r\nb\nc\n", "b\nc", "x\ny"), "a\r\nx\ny\n");
        assert_eq!(done(b"a\r\nb\nc\n", "a\nb", "x", false), Err(NoEdit::Absent));
    }

    #[test]
    fn what_is_not_utf_8_stays_what_it_is() {
        assert_eq!(done(b"caf\xe9 = 1\n", "= 1", "= 2", false), Ok((b"caf\xe9 = 2\n".to_vec(), 1)));
    }

    proptest! {
        #[test]
        fn replacing_all_is_what_the_library_does(held in "[ab\n]{0,20}", old in "[ab\n]{1,3}", new in "[abc\n]{0,3}") {
            prop_assume!(old != new);
            let expected = held.replace(&old, &new);
            match done(held.as_bytes(), &old, &new, true) {
                Ok((text, _)) => prop_assert_eq!(text, expected.into_bytes()),
                Err(why) => prop_assert_eq!((why, expected), (NoEdit::Absent, held)),
            }
        }
    }
}
