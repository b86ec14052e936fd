//! Files and changes as models get them: bounded, and with a word about what is not shown.

use std::time::Duration;

use similar::TextDiff;

use super::change::FileChange;

/// What is looked at to tell a binary file.
pub const LOOKED_AT: usize = 8 * 1024;

/// The longest diff of one change, and the largest files that are compared for it.
const DIFF_BYTES: usize = 16 * 1024;
const COMPARED_BYTES: usize = 1024 * 1024;

/// How long a diff may be worked at; after that it is right, and longer than it could be.
const DIFF_TIME: Duration = Duration::from_millis(500);

/// Whether these are not lines of text.
pub fn is_binary(bytes: &[u8]) -> bool {
    bytes[..bytes.len().min(LOOKED_AT)].contains(&0)
}

/// The beginning of a text of at most so many bytes, at the border of a character.
pub fn beginning(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// What a change does, as one unified diff.
pub fn diff(files: &[FileChange]) -> String {
    let mut said = String::new();
    for file in files {
        said.push_str(&file_diff(file));
    }
    if said.len() <= DIFF_BYTES {
        return said;
    }
    let kept = beginning(&said, DIFF_BYTES);
    let kept = kept.rfind('\n').map_or(kept, |end| &kept[..=end]);
    format!("{kept}[the diff is cut here: it has {} bytes]\n", said.len())
}

fn file_diff(file: &FileChange) -> String {
    let [before, after] = [&file.before, &file.after].map(|side| side.as_deref().unwrap_or_default());
    let name = |side: &str, held: &Option<Vec<u8>>| match held {
        Some(_) => format!("{side}/{}", file.path.display()),
        None => "/dev/null".to_owned(),
    };
    let (old, new) = (name("a", &file.before), name("b", &file.after));
    let untold =
        |why: &str| format!("--- {old}\n+++ {new}\n[{why}: {} bytes before, {} after]\n", before.len(), after.len());
    if is_binary(before) || is_binary(after) {
        return untold("binary");
    }
    if before.len().max(after.len()) > COMPARED_BYTES {
        return untold("too large to compare");
    }
    let (before, after) = (String::from_utf8_lossy(before), String::from_utf8_lossy(after));
    let compared = TextDiff::configure().timeout(DIFF_TIME).diff_lines(before.as_ref(), after.as_ref());
    let diff = compared.unified_diff().context_radius(3).header(&old, &new).to_string();
    if diff.is_empty() && file.before.is_none() { format!("--- {old}\n+++ {new}\n") } else { diff }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(before: Option<&str>, after: Option<&str>) -> FileChange {
        let bytes = |text: Option<&str>| text.map(|text| text.as_bytes().to_vec());
        FileChange { path: "f".into(), before: bytes(before), after: bytes(after), mode: None }
    }

    #[test]
    fn a_diff_names_both_sides() {
        let said = diff(&[change(Some("a\nb\n"), Some("a\nc\n")), change(None, Some("x\n")), change(Some("y"), None)]);
        assert_eq!(
            said,
            "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+x\n\
             --- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-y\n\\ No newline at end of file\n"
        );
    }

    #[test]
    fn what_is_too_much_is_said_to_be() {
        let long: String = (0..5_000).map(|line| format!("line {line}\n")).collect();
        let said = diff(&[change(None, Some(&long))]);
        assert!(said.len() < DIFF_BYTES + 100 && said.ends_with(" bytes]\n"), "{}", said.len());
        let huge = "x".repeat(COMPARED_BYTES + 1);
        assert!(
            diff(&[change(Some("a"), Some(&huge))]).contains("too large to compare: 1 bytes before, 1048577 after")
        );
        assert!(diff(&[change(Some("a\0b"), Some("a"))]).contains("[binary: 3 bytes before, 1 after]"));
    }
}
