use proptest::prelude::*;

use super::*;

fn patch(body: &str) -> Result<Vec<Part>, NoPatch> {
    parse(&format!("{BEGIN}\n{body}\n{END}\n"))
}

/// A file after an update with these hunks.
fn updated(held: &str, hunks: &str) -> Result<String, NoPatch> {
    let parts = patch(&format!("*** Update File: f\n{hunks}"))?;
    let [Part::Update { hunks, .. }] = parts.as_slice() else { panic!("{parts:?}") };
    apply(held.as_bytes(), hunks).map(|text| String::from_utf8(text).unwrap())
}

#[test]
fn every_kind_of_part_is_read() {
    let parts = patch(
        "*** Add File: a/b.txt\n+one\n+\n+two\n*** Delete File: gone\n*** Update File: old\n*** Move to: new\n@@ fn x\n a\n-b\n+c\n",
    );
    let [line, text] = ["fn x", "one\n\ntwo\n"].map(str::to_owned);
    let lines = vec![Line::Context("a".into()), Line::Removed("b".into()), Line::Added("c".into())];
    let hunk = Hunk { behind: vec![line], lines, at_end: false };
    assert_eq!(
        parts.unwrap(),
        [
            Part::Add { path: "a/b.txt".into(), text },
            Part::Delete { path: "gone".into() },
            Part::Update { path: "old".into(), moved: Some("new".into()), hunks: vec![hunk] },
        ]
    );
}

#[test]
fn what_is_no_patch_says_where() {
    let unified = "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n";
    assert_eq!(parse(unified), Err(NoPatch::Envelope));
    assert_eq!(parse(BEGIN), Err(NoPatch::Envelope));
    assert_eq!(parse(""), Err(NoPatch::Envelope));
    assert_eq!(patch(""), Err(NoPatch::Empty));
    assert_eq!(patch("*** Rename File: a"), Err(NoPatch::Header(2)));
    assert_eq!(patch("*** Add File: a\n+x\ny"), Err(NoPatch::Added(4)));
    assert_eq!(patch("*** Update File: a\n@@\n a\n*b"), Err(NoPatch::Line(5)));
    assert_eq!(patch("*** Update File: a"), Err(NoPatch::NoHunk(2)));
}

#[test]
fn the_paths_of_a_patch_are_told_before_it_is_read() {
    let text = "*** Begin Patch\n*** Update File: a \n*** Move to: b/c\nnonsense\n*** Delete File: d";
    assert_eq!(paths(text), ["a", "b/c", "d"]);
    assert_eq!(paths("*** Begin Patch\r\n*** Add File: x\r\n"), ["x"]);
}

#[test]
fn hunks_are_applied_in_order() {
    let held = "a\nb\nc\nd\ne\n";
    assert_eq!(updated(held, "@@\n a\n-b\n+B\n+B2\n c\n@@\n-e\n+E").unwrap(), "a\nB\nB2\nc\nd\nE\n");
    // The second one is not looked for before the first one.
    let why = updated(held, "@@\n-e\n+E\n@@\n-a\n+A").unwrap_err();
    assert_eq!(why, NoPatch::Absent { hunk: 2, lines: "a".into() });
}

#[test]
fn a_hunk_that_fits_twice_needs_to_be_told_where() {
    let held = "fn a\n  x\nfn b\n  x\n";
    let why = updated(held, "@@\n-  x\n+  y").unwrap_err();
    assert_eq!(why, NoPatch::Ambiguous { hunk: 1, lines: "2, 4".into() });
    assert_eq!(updated(held, "@@ fn b\n-  x\n+  y").unwrap(), "fn a\n  x\nfn b\n  y\n");
    assert_eq!(updated(held, "@@\n fn b\n-  x\n+  y").unwrap(), "fn a\n  x\nfn b\n  y\n");
    assert_eq!(updated(held, "@@\n-  x\n+  y\n*** End of File").unwrap(), "fn a\n  x\nfn b\n  y\n");
    let why = updated(held, "@@ fn z\n-  x\n+  y").unwrap_err();
    assert_eq!(why, NoPatch::NoSuchLine { hunk: 1, line: "fn z".into() });
}

#[test]
fn lines_are_added_behind_a_line_or_at_the_end() {
    assert_eq!(updated("a\nb\n", "@@ a\n+x").unwrap(), "a\nx\nb\n");
    assert_eq!(updated("a\nb\n", "@@\n+x").unwrap(), "a\nb\nx\n");
    assert_eq!(updated("", "@@\n+x").unwrap(), "x\n");
}

#[test]
fn line_ends_and_their_absence_stay() {
    assert_eq!(updated("a\r\nb\r\n", "@@\n a\n-b\n+c\n+d").unwrap(), "a\r\nc\r\nd\r\n");
    assert_eq!(updated("a\nb", "@@\n a\n-b\n+c").unwrap(), "a\nc");
    assert_eq!(updated("a\nb", "@@\n-a\n b").unwrap(), "b");
    // Context keeps what is at the ends of its lines.
    assert_eq!(updated("a  \nb\n", "@@\n a\n-b\n+c").unwrap(), "a  \nc\n");
    assert_eq!(updated("a\n\nb\n", "@@\n a\n\n-b\n+c").unwrap(), "a\n\nc\n");
}

#[test]
fn all_lines_may_go() {
    assert_eq!(updated("a\n", "@@\n-a").unwrap(), "");
}

proptest! {
    /// Whatever is between two texts, a patch of all their lines makes one of the other.
    #[test]
    fn a_patch_of_every_line_makes_the_new_text(
        old in proptest::collection::vec("[a-c ]{0,3}", 1..6),
        new in proptest::collection::vec("[a-c ]{0,3}", 1..6),
    ) {
        let signed = |sign: char, lines: &[String]| -> String {
            lines.iter().map(|line| format!("{sign}{line}\n")).collect()
        };
        let hunks = format!("@@\n{}{}", signed('-', &old), signed('+', &new));
        let text = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        prop_assert_eq!(updated(&text(&old), &hunks), Ok(text(&new)));
    }

    #[test]
    fn no_text_makes_the_reader_fail(text in "(\\*\\*\\* (Begin Patch|Add File: a|Update File: b|Move to: c|End of File|End Patch)|@@|@@ x|[-+ ]x|é|\r)(\n|.){0,40}") {
        let _ = parse(&text);
        let _ = parse(&format!("{BEGIN}\n*** Update File: f\n{text}\n{END}"));
        let _ = paths(&text);
    }
}
