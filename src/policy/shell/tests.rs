use proptest::prelude::*;
use raddle_domain::policy::{Action, Policy, check};
use serde_json::json;

use super::*;

fn commands(text: &str) -> Result<Vec<String>, Opaque> {
    read(text).commands.map(|commands| commands.iter().map(|words| words.join("·")).collect())
}

/// Whether a rule that denies `git push` speaks of the text.
fn denied(text: &str) -> bool {
    let policy: Policy =
        serde_json::from_value(json!({"rules": [{"command": ["git", "push"], "action": "deny"}]})).unwrap();
    assert_eq!(policy.rules[0].action, Action::Deny);
    check::covers(&policy.rules[0], text, &read)
}

#[test]
fn plain_words_are_read_as_they_run() {
    for (text, expected) in [
        ("ls", &["ls"][..]),
        ("  ls -la  /tmp \n", &["ls·-la·/tmp"]),
        ("git commit -m 'it''s $HOME & `more`'", &["git·commit·-m·its $HOME & `more`"]),
        ("git commit -m \"a; b && c | d\n# e\"", &["git·commit·-m·a; b && c | d\n# e"]),
        ("a && b || c; d | e", &["a", "b", "c", "d", "e"]),
        ("a;b", &["a", "b"]),
        ("head -n 5 a.txt", &["head·-n·5·a.txt"]),
        ("echo '' \"\" x'y'\"z\"", &["echo···xyz"]),
        ("git log HEAD^ --format=%h a..b", &["git·log·HEAD^·--format=%h·a..b"]),
        ("echo größe a=b --x=y", &["echo·größe·a=b·--x=y"]),
        ("'git' push", &["git·push"]),
        ("test -f x", &["test·-f·x"]),
    ] {
        let expected: Vec<String> = expected.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(commands(text), Ok(expected), "{text}");
    }
}

#[test]
fn everything_else_is_opaque_with_a_reason() {
    use Opaque::*;
    for (text, why) in [
        ("", Empty),
        (" \n", Empty),
        ("''", Empty),
        ("ls && \"\" x", Empty),
        ("ls $(x)", Substitution),
        ("ls \"$(x)\"", Substitution),
        ("ls `x`", Substitution),
        ("ls <(x)", Substitution),
        ("ls $x", Expansion),
        ("ls ${x}", Expansion),
        ("ls \"$x\"", Expansion),
        ("ls $'x'", Expansion),
        ("ls ~/x", Expansion),
        ("{git,push}", Expansion),
        ("ls {1..3}", Expansion),
        ("ls > x", Redirection),
        ("ls 2>&1", Redirection),
        ("ls < x", Redirection),
        ("ls &> x", Redirection),
        ("cat << E\nx\nE", HereDocument),
        ("cat <<< x", HereDocument),
        ("A=b ls", Assignment),
        ("PAGER=x git log", Assignment),
        ("A=b", Assignment),
        ("export A=b", Assignment),
        ("LD_PRELOAD=x ls", Assignment),
        ("declare -x A=b", Assignment),
        ("(ls)", Subshell),
        ("ls & rm x", Background),
        ("ls &", Background),
        ("ls && rm & x", Background),
        ("ls\nrm x", Lines),
        ("ls\rrm x", CarriageReturn),
        ("ls '\r'", CarriageReturn),
        ("ls\r\n", CarriageReturn),
        ("ls \0", Nul),
        ("ls '\0'", Nul),
        ("ls \u{1b}[2J", Control),
        ("ls \u{b}x", Control),
        ("ls *", Glob),
        ("ls a?", Glob),
        ("ls [a]", Glob),
        ("[ -f x ]", Glob),
        ("[[ -f x ]]", Glob),
        ("ls a\\ b", Escape),
        ("ls \\\nx", Escape),
        ("g\\it push", Escape),
        ("echo \"\\n\"", Escape),
        ("ls # x", Comment),
        ("! ls", Compound),
        ("if ls; then rm x; fi", Compound),
        ("while ls; do rm x; done", Compound),
        ("for x in a; do ls; done", Compound),
        ("ls '", Syntax),
        ("ls \"x", Syntax),
        ("&& ls", Syntax),
        ("ls |& x", Background),
        ("ls &&", Syntax),
        ("ls;; x", Other),
        ("| x", Syntax),
        ("ls\u{a0}x", Other),
        ("ls &&& x", Background),
    ] {
        assert_eq!(commands(text), Err(why), "{text:?}");
    }
}

#[test]
fn a_chain_has_a_bound_and_so_has_a_text() {
    let chain = |count: usize, by: &str| vec!["ls"; count].join(by);
    for by in [" && ", ";", " | "] {
        assert_eq!(commands(&chain(MAX_COMMANDS, by)).map(|commands| commands.len()), Ok(MAX_COMMANDS), "{by}");
        assert_eq!(commands(&chain(MAX_COMMANDS + 1, by)), Err(Opaque::TooMany), "{by}");
        assert_eq!(commands(&chain(2_000, by)), Err(Opaque::TooMany), "{by}");
        assert!(denied(&format!("{}{by}git push", chain(2_000, by))), "{by}");
    }
    assert_eq!(commands(&"x".repeat(MAX_BYTES + 1)), Err(Opaque::TooLong));
    let nested = format!("{}git push{}", "$(".repeat(50), ")".repeat(50));
    assert!(denied(&nested) || read(&nested).unread.is_some());
    let much = "sh -c 'a b' ; ".repeat(60_000);
    assert!(read(&much).unread.is_some());
    let wide = format!("xargs {}git push", "x ".repeat(2_000));
    assert!(read(&wide).unread.is_some());
}

#[test]
fn denied_prefix_survives_every_shell_spelling() {
    let spellings = [
        // quotes
        "git push",
        "'git' push",
        "git 'push'",
        "\"git\" \"push\"",
        "g'i't pu\"s\"h",
        "g\\it push",
        "git pus\\h",
        "$'git' push",
        "$'\\x67it' push",
        "$'\\147it' push",
        "$'\\u0067it' push",
        "$\"git\" push",
        "git''push x; git push",
        "\\git push",
        "git \\\n push",
        // where the program is, and its case
        "/usr/bin/git push",
        "./git push",
        "../x/git push",
        "GIT push",
        "Git PUSH",
        // wrappers
        "sudo git push",
        "sudo -u root -- git push",
        "doas git push",
        "env git push",
        "env -i A=b git push",
        "nohup git push &",
        "time git push",
        "time -p git push",
        "timeout 5 git push",
        "timeout -k 1 -s KILL 5 git push",
        "xargs git push",
        "xargs -n 1 -I{} git push {}",
        "nice -n 10 git push",
        "ionice -c 2 -n 7 git push",
        "setsid git push",
        "stdbuf -oL git push",
        "command git push",
        "command -p git push",
        "builtin git push",
        "exec git push",
        "exec -a x git push",
        "eval git push",
        "eval 'git push'",
        "eval \"git\" 'push'",
        "sudo env A=b nice timeout 5 git push",
        "busybox sh -c 'git push'",
        "env -S 'git push'",
        "env --split-string='git push'",
        "env '-Sgit push'",
        // shells
        "sh -c 'git push'",
        "bash -lc 'git push'",
        "/bin/bash -l -c \"git push\"",
        "zsh -c 'cd x && git push'",
        "sh -c \"sh -c 'git push'\"",
        "sudo bash -c 'git push'",
        "xargs sh -c 'git push'",
        "su -c 'git push' root",
        "watch 'git push'",
        "script -c 'git push'",
        "flock x -c 'git push'",
        "sh -c 'exec \"$@\"' x git push",
        "bash -c \"$(echo git push)\"",
        "bash <<< 'git push'",
        "bash <<E\ngit push\nE",
        "bash <<'E'\nit's\ngit push\nE",
        "echo git push | sh",
        "echo 'git push' | sudo bash",
        "printf 'git push' | sh -s",
        "echo push | xargs git",
        "source <(git push)",
        ". <(echo; git push)",
        "trap 'git push' EXIT",
        // programs that run others
        "find . -exec git push \\;",
        "find . -exec git push ';'",
        "find . -execdir sh -c 'git push' \\;",
        "find . -ok git push \\;",
        "fd x -x git push",
        "git submodule foreach git push",
        "git submodule foreach 'git push'",
        "git rebase --exec 'git push' x",
        "git rebase -x 'git push'",
        "git rebase --exec='git push'",
        "git bisect run git push",
        "git -c alias.p='!git push' p",
        // substitutions
        "echo $(git push)",
        "echo \"$(git push)\"",
        "echo `git push`",
        "echo \"`git push`\"",
        "cat <(git push)",
        "tee >(git push)",
        "x=$(git push)",
        "echo $(echo $(git push))",
        "echo ${x:-$(git push)}",
        "echo $((1 + $(git push)))",
        "git $(true) push",
        "g$(true)it push",
        "$(true) git push",
        "echo $(case x in x) git push;; esac)",
        // what is put together of nothing
        "git$IFS\"push\"",
        "git${IFS}push",
        "git $x push",
        "g${x}it push",
        "git $@ push",
        "${x:-git} push",
        "{git,push}",
        "$x git push",
        // subshells, groups, the shell's own words
        "(git push)",
        "( cd x; git push )",
        "{ git push; }",
        "! git push",
        "if git push; then x; fi",
        "if x; then git push; fi",
        "while git push; do x; done",
        "for x in y; do git push; done",
        "case x in x) git push;; esac",
        "f() { git push; }; f",
        "function f { git push; }",
        "coproc git push",
        // separators
        "ls; git push",
        "ls;git push",
        "ls && git push",
        "ls || git push",
        "ls | git push",
        "ls |& git push",
        "ls & git push",
        "ls &git push",
        "ls\ngit push",
        "ls\rgit push",
        "ls\r\ngit push",
        "&& git push",
        "ls # x'\ngit push",
        "ls '\ngit push",
        // variables and redirections before and between
        "A=b git push",
        "A=b C='d e' git push",
        "GIT_SSH_COMMAND=x git push",
        "A=$(x) git push",
        "A+=b git push",
        "A[0]=b git push",
        ">x git push",
        "2>&1 git push",
        "git >x push",
        "git 2>/dev/null push",
        "git &>x push",
        "git < x push",
        "<<<x git push",
        // space
        "git\tpush",
        "  git   push",
        "git\u{b}push",
        "git push\0",
        "gi\0t push",
    ];
    let missed: Vec<_> =
        spellings.iter().filter(|text| !denied(text)).map(|text| (text, read(text).suspects)).collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn denied_prefix_is_not_bypassed_by_a_flag() {
    for text in [
        "git -c x=y push",
        "git -c x=y -c z=w push",
        "git --no-pager push",
        "git -C dir push",
        "git -C 'a b' push",
        "git --git-dir=x push",
        "git --git-dir x --work-tree y push",
        "git -P -p push",
        "git -- push",
        "git -c 'x=$y' push",
        "sudo -n git -c x=y push",
        "git -c \"$x\" push",
        "git --exec-path=x push --force",
    ] {
        assert!(denied(text), "{text:?}");
    }
}

#[test]
fn what_does_not_run_it_is_not_denied() {
    for text in [
        "git stash",
        "git pushx",
        "gitpush",
        "git commit -m 'git push'",
        "git commit -m push",
        "echo git push",
        "grep -r 'git push' .",
        "ls 'git push'",
        "echo 'a; git push'",
        "echo 'a | git push' | wc",
        "git log --grep 'git push'",
        "man git push",
        "time git commit -m 'git push'",
        "cat x # git push",
        "echo a > 'git push'",
    ] {
        assert!(!denied(text), "{text:?}: {:?}", read(text).suspects);
    }
}

#[test]
fn words_that_are_given_apart_are_not_parted_again() {
    let given: Vec<String> = ["echo", "a; git push", "$(x)"].map(str::to_owned).into();
    assert_eq!(words(&given), Script { commands: Ok(vec![given.clone()]), suspects: vec![given], unread: None });
    let shell: Vec<String> = ["sh", "-c", "x; git push"].map(str::to_owned).into();
    assert!(words(&shell).suspects.iter().any(|words| words.join(" ") == "git push"));
    assert_eq!(words(&[]).commands, Err(Opaque::Empty));
}

/// What a person might type, and what nobody would.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z]{1,4}",
        Just(" ".to_owned()),
        "[-'\"\\\\$`(){}<>|&;#!~*?\\[\\]=\n\r\t\0,]",
        proptest::sample::select(vec![
            "$(", "<(", "<<E\n", "\nE\n", "&&", "||", "git push", "sh -c ", "if ", "; fi", "${x:-", "$'", "é", "sudo "
        ])
        .prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// A way to say a command, around any other.
fn spelled(inner: &str, way: u8) -> String {
    let quoted = || format!("'{}'", inner.replace('\'', r"'\''"));
    match way % 12 {
        0 => format!("sudo {inner}"),
        1 => format!("sh -c {}", quoted()),
        2 => format!("({inner})"),
        3 => format!("ls; {inner}"),
        4 => format!("echo $({inner})"),
        5 => format!("A=b {inner}"),
        6 => format!("ls & {inner}"),
        7 => format!("timeout 5 {inner}"),
        8 => format!("{{ {inner}; }}"),
        9 => format!("ls\n{inner}"),
        10 => format!("bash -lc {}", quoted()),
        _ => format!("{inner} > x"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_text_is_read_without_a_panic(text in prop_oneof![texts(), "\\PC{0,40}", any::<String>()]) {
        let script = read(&text);
        prop_assert!(script.suspects.iter().all(|words| !words.is_empty()));
        if let Ok(commands) = &script.commands {
            prop_assert!(!commands.is_empty() && commands.iter().all(|words| !words.is_empty()));
            for words in commands {
                prop_assert!(script.suspects.iter().any(|suspect| words.ends_with(suspect)), "{:?}", script);
            }
        }
    }

    #[test]
    fn what_expands_outside_of_single_quotes_is_opaque(text in texts()) {
        let mut in_single = false;
        let mut in_double = false;
        let mut expands = false;
        for char in text.chars() {
            match char {
                '\'' if !in_double => in_single = !in_single,
                '"' if !in_single => in_double = !in_double,
                '$' | '`' if !in_single => expands = true,
                _ => {}
            }
        }
        if expands {
            prop_assert!(read(&text).commands.is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_plain_text_means_what_its_words_written_out_mean(text in texts()) {
        if let Ok(commands) = read(&text).commands {
            let quoted = |word: &String| format!("'{}'", word.replace('\'', "'\"'\"'"));
            let line = |words: &Vec<String>| words.iter().map(quoted).collect::<Vec<_>>().join(" ");
            let again = commands.iter().map(line).collect::<Vec<_>>().join(" ; ");
            prop_assert_eq!(read(&again).commands, Ok(commands), "{}", again);
        }
    }

    #[test]
    fn a_denial_survives_ways_to_say_it_in_each_other(ways in proptest::collection::vec(any::<u8>(), 0..5)) {
        let text = ways.iter().fold("git push".to_owned(), |inner, way| spelled(&inner, *way));
        prop_assert!(denied(&text) || read(&text).unread.is_some(), "{text:?}");
    }
}
