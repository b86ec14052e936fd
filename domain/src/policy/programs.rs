//! What is known about programs: which of them run others, by name or by a flag, and how many words name what one
//! does.
//!
//! None of these lists is complete, and none has to be: a program that is missing here can be trusted by a rule that
//! names it, which is for whoever writes the rule to know. Listed is what people take for harmless and is not.

/// Programs that run what their arguments name.
const WRAPPERS: &[&str] = &[
    "sudo",
    "doas",
    "su",
    "runuser",
    "env",
    "nohup",
    "time",
    "timeout",
    "xargs",
    "nice",
    "ionice",
    "setsid",
    "stdbuf",
    "command",
    "builtin",
    "exec",
    "eval",
    "chroot",
    "unshare",
    "nsenter",
    "setpriv",
    "flock",
    "parallel",
    "watch",
    "script",
    "strace",
    "ltrace",
    "busybox",
    "toybox",
    "chrt",
    "taskset",
    "prlimit",
    "unbuffer",
    "entr",
    "coproc",
    "systemd-run",
    "trap",
    "pkexec",
    "gtimeout",
    "fakeroot",
    "proot",
    "bwrap",
    "firejail",
    "xvfb-run",
    "dbus-run-session",
    "start-stop-daemon",
    "run-parts",
    "numactl",
    "valgrind",
    "perf",
    "gdb",
    "lldb",
    "rlwrap",
    "expect",
    "socat",
    "screen",
    "tmux",
    "at",
    "batch",
    "ssh",
    "npx",
    "bunx",
    "uvx",
    "pipx",
    "awk",
    "gawk",
    "mawk",
    "nawk",
];

/// Programs that run text as commands.
const SHELLS: [&str; 14] =
    ["sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "fish", "csh", "tcsh", "rbash", "yash", "source", "."];

/// Programs that read one of their arguments as a text of commands.
const READERS: [&str; 10] = ["su", "runuser", "env", "watch", "script", "flock", "parallel", "eval", "trap", "entr"];

/// Programs that run what stands behind one of these words.
const BEHIND: [(&str, &[&str]); 4] = [
    ("find", &["-exec", "-execdir", "-ok", "-okdir"]),
    ("fd", &["-x", "-X", "--exec", "--exec-batch"]),
    ("fdfind", &["-x", "-X", "--exec", "--exec-batch"]),
    ("git", &["-x", "--exec", "foreach", "run", "exec"]),
];

/// Words of a shell's language behind which a command stands.
const KEYWORDS: [&str; 12] =
    ["if", "then", "else", "elif", "do", "while", "until", "!", "{", "}", "function", "select"];

/// Flags with which a program runs another one, or writes where its arguments say.
const FLAGS: [(&str, &[&str]); 15] = [
    (
        "git",
        &[
            "-c",
            "-O",
            "-u",
            "-x",
            "--config",
            "--config-env",
            "--exec",
            "--exec-path",
            "--ext-diff",
            "--extcmd",
            "--git-dir",
            "--open-files-in-pager",
            "--output",
            "--receive-pack",
            "--smtp-server",
            "--template",
            "--textconv",
            "--tool",
            "--upload-pack",
            "--work-tree",
        ],
    ),
    ("find", &["-exec", "-execdir", "-ok", "-okdir", "-delete", "-fprint", "-fprint0", "-fprintf", "-fls"]),
    ("fd", &["-x", "-X", "--exec", "--exec-batch"]),
    ("fdfind", &["-x", "-X", "--exec", "--exec-batch"]),
    (
        "tar",
        &[
            "-F",
            "-I",
            "--checkpoint-action",
            "--info-script",
            "--new-volume-script",
            "--rmt-command",
            "--rsh-command",
            "--to-command",
            "--use-compress-program",
        ],
    ),
    ("rg", &["-z", "--hostname-bin", "--pre", "--search-zip"]),
    ("sort", &["-o", "--compress-program", "--output"]),
    ("rsync", &["-e", "--rsh", "--rsync-path"]),
    ("ssh", &["-F", "-o", "-S"]),
    ("scp", &["-F", "-o", "-S"]),
    ("curl", &["-K", "-o", "-O", "--config", "--output", "--remote-name"]),
    ("wget", &["-e", "-O", "--execute", "--output-document", "--use-askpass"]),
    ("man", &["-H", "-P", "--html", "--pager"]),
    ("split", &["--filter"]),
    ("cargo", &["--config"]),
];

/// A program and its word that say nothing yet: which command it is, the third word says.
const THREE: [(&str, &str); 6] =
    [("npm", "run"), ("pnpm", "run"), ("yarn", "run"), ("bun", "run"), ("docker", "compose"), ("podman", "compose")];

/// Words of `git` with which it runs what is said behind them, or will from then on.
const GIT_RUNS: &[&str] =
    &["bisect", "config", "difftool", "filter-branch", "hook", "instaweb", "mergetool", "send-email", "submodule"];

/// Programs whose second word says what they do. Of any other one it is an argument: to have removed `x` once is no
/// leave to remove whatever is named behind it.
const WITH_SUBCOMMANDS: &[&str] = &[
    "git",
    "cargo",
    "rustup",
    "npm",
    "pnpm",
    "yarn",
    "bun",
    "docker",
    "podman",
    "kubectl",
    "helm",
    "terraform",
    "go",
    "dotnet",
    "pip",
    "pip3",
    "poetry",
    "composer",
    "apt",
    "apt-get",
    "brew",
    "gh",
    "systemctl",
];

/// A program and its word that run whatever else is said.
const ANYTHING: [(&str, &str); 9] = [
    ("docker", "run"),
    ("docker", "exec"),
    ("podman", "run"),
    ("podman", "exec"),
    ("kubectl", "exec"),
    ("npm", "exec"),
    ("pnpm", "exec"),
    ("pnpm", "dlx"),
    ("yarn", "dlx"),
];

/// The name of a program, without the directory it is in, as rules that deny look at it.
pub fn base_name(program: &str) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    // `.` is a program of its own.
    (if name.is_empty() { program } else { name }).to_ascii_lowercase()
}

/// Whether a command stands behind the word, which is a shell's own.
pub fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word)
}

/// Whether a word sets a variable for the command behind it.
pub fn is_assignment(word: &str) -> bool {
    let Some((name, _)) = word.split_once('=') else { return false };
    let name = name.strip_suffix('+').unwrap_or(name);
    let name = name.split_once('[').map_or(name, |(name, _)| name);
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

pub fn is_shell(program: &str) -> bool {
    SHELLS.contains(&base_name(program).as_str())
}

/// Whether the program reads its arguments as commands.
pub fn reads_text(program: &str) -> bool {
    READERS.contains(&base_name(program).as_str()) || is_shell(program)
}

/// Whether the program runs what its arguments name.
pub fn is_wrapper(program: &str) -> bool {
    WRAPPERS.contains(&base_name(program).as_str())
}

/// The words behind which the program runs what follows.
pub fn runs_behind(program: &str) -> &'static [&'static str] {
    let name = base_name(program);
    BEHIND.iter().find(|(known, _)| *known == name).map_or(&[], |(_, words)| words)
}

/// Whether the program does nothing but run others: to allow it is to allow everything.
pub fn runs_others(program: &str) -> bool {
    is_wrapper(program) || is_shell(program)
}

/// Why no beginning of this command, whatever it is, says what it does.
pub fn distrusted(words: &[String]) -> Option<String> {
    let program = words.first()?;
    if runs_others(program) {
        return Some(format!("`{program}` runs what its arguments name"));
    }
    if is_assignment(program) {
        return Some(format!("`{program}` sets a variable"));
    }
    let name = base_name(program);
    let runs = |word: &&String| name == "git" && GIT_RUNS.contains(&word.as_str());
    if let Some(word) = words[1..].iter().find(runs) {
        return Some(format!("`git {word}` may run another program, now or later"));
    }
    let (_, flags) = FLAGS.iter().find(|(known, _)| *known == name)?;
    // The bundled flags of `tar xIf` have no dash.
    let old_style = words.get(1).filter(|_| name == "tar").filter(|word| !word.starts_with('-'));
    let old_style = old_style.filter(|word| word.contains(['F', 'I']));
    let flag = old_style.or_else(|| words[1..].iter().find(|word| flags.iter().any(|flag| is_flag(word, flag))))?;
    Some(format!("with `{flag}` it may run another program, or write where it is told"))
}

/// Whether a word is the flag in one of the ways to write it: with its value, bundled with others, abbreviated.
fn is_flag(word: &str, flag: &str) -> bool {
    if flag.starts_with("--") {
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        return name.len() > 2 && flag.starts_with(name);
    }
    match flag.strip_prefix('-') {
        Some(letter) if letter.len() == 1 => {
            word.strip_prefix('-').is_some_and(|rest| !rest.starts_with('-') && rest.contains(letter))
        }
        _ => word == flag,
    }
}

/// The beginning of a command that is narrow enough to be approved for ever: a program with its subcommand. A program
/// alone would be too much, and so would one with a flag or a path.
pub fn amendable(words: &[String]) -> Option<&[String]> {
    let is_plain = |word: &String| {
        word.starts_with(|first: char| first.is_ascii_alphabetic())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    let [program, second, ..] = words else { return None };
    if !WITH_SUBCOMMANDS.contains(&base_name(program).as_str()) {
        return None;
    }
    let pair = (base_name(program), second.as_str());
    let is = |known: &(&str, &str)| (known.0, known.1) == (pair.0.as_str(), pair.1);
    if ANYTHING.iter().any(is) {
        return None;
    }
    let prefix = words.get(..if THREE.iter().any(is) { 3 } else { 2 })?;
    prefix[1..].iter().all(is_plain).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_program_that_runs_others_is_not_trusted_with_them() {
        for line in [
            "sudo ls",
            "/usr/bin/sudo ls",
            "env ls",
            "xargs rm",
            "bash -c ls",
            ". x",
            "/bin/sh x",
            "find . -exec rm {} ;",
            "find . -delete",
            "tar cf x.tar --checkpoint=1 --checkpoint-action=exec=sh x",
            "tar xf x --to-com=sh",
            "tar -xIsh -f x",
            "tar xIf sh x",
            "git -c core.pager=sh log",
            "git log --output=x",
            "git diff --ext-diff",
            "git grep -Osh x",
            "git log --outp=x",
            "rg --pre sh x",
            "rg -iz x",
            "sort -ox y",
            "PAGER=sh git",
            "cargo --config x test",
            "git clone -u ./evil file:///x y",
            "git bisect run ./x",
            "git submodule foreach ls",
            "git config alias.x !x",
            "fakeroot git push",
            "awk BEGIN{system(1)}",
            "npx x",
            "ssh host ls",
        ] {
            assert!(distrusted(&words(line)).is_some(), "{line}");
        }
        for line in
            ["ls -la", "git log --oneline -n 5", "find . -name x", "tar tf x.tar", "rg -i x", "sort -n x", "cargo test"]
        {
            assert_eq!(distrusted(&words(line)), None, "{line}");
        }
    }

    #[test]
    fn what_can_be_approved_for_ever_is_a_program_with_its_subcommand() {
        let amended = |line| amendable(&words(line)).map(|prefix| prefix.join(" "));
        assert_eq!(amended("git commit -m x").as_deref(), Some("git commit"));
        assert_eq!(amended("npm run build -- --watch").as_deref(), Some("npm run build"));
        assert_eq!(amended("docker compose up").as_deref(), Some("docker compose up"));
        for line in [
            "ls",
            "git",
            "rm -rf x",
            "cat a.txt",
            "ls /etc",
            "npm run",
            "npm run -s x",
            "docker run alpine",
            "echo ",
            "rm x",
            "cp a b",
            "zip a b",
        ] {
            assert_eq!(amended(line), None, "{line}");
        }
    }

    #[test]
    fn a_variable_is_told_from_an_argument() {
        for word in ["A=b", "_a1=", "A+=b", "A[1]=b"] {
            assert!(is_assignment(word), "{word}");
        }
        for word in ["a", "=b", "1a=b", "--a=b", "a-b=c", "./a=b"] {
            assert!(!is_assignment(word), "{word}");
        }
    }
}
