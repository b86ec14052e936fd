//! What one rule covers.
//!
//! A rule that denies or asks is held against whatever a command may come to run, and reads words leniently: in any
//! case, by the name of a program wherever it lies, past flags and their values. A rule that allows is held against
//! the words that will be run, and reads them to the letter.

use globset::{GlobBuilder, GlobMatcher};

use super::{Action, Layer, Rule, Words, programs};

/// A rule with its place, ready to be held against calls.
pub(super) struct Held<'a> {
    pub layer: Layer,
    pub rule: &'a Rule,
    at: usize,
    /// The glob; an error is one that cannot be used.
    glob: Option<Result<GlobMatcher, String>>,
}

impl<'a> Held<'a> {
    pub fn new(layer: Layer, at: usize, rule: &'a Rule) -> Self {
        Self { layer, rule, at, glob: rule.path.as_deref().map(glob) }
    }

    /// How people name it.
    pub fn name(&self) -> String {
        self.rule.name.clone().unwrap_or_else(|| format!("rules[{}]", self.at))
    }

    pub fn denies_or_asks(&self) -> bool {
        self.rule.action != Action::Allow
    }

    /// Whether it looks at nothing, or nothing but the tool.
    pub fn is_bare(&self) -> bool {
        let Rule { command, path, host, .. } = self.rule;
        command.is_none() && path.is_none() && host.is_none()
    }

    /// Whether a command is one that it names. A rule that names none has no opinion.
    pub fn covers_command(&self, words: &[String]) -> Option<bool> {
        let beginning = self.rule.command.as_deref()?;
        Some(if self.denies_or_asks() { begins_loosely(beginning, words) } else { begins(beginning, words) })
    }

    /// Whether a path is one that it names.
    pub fn covers_path(&self, place: &Place) -> Option<bool> {
        Some(match self.glob.as_ref()? {
            Err(_) => self.denies_or_asks(),
            Ok(glob) if self.denies_or_asks() => {
                place.known_as.iter().any(|path| glob.is_match(path) || glob.is_match(format!("{path}/")))
            }
            Ok(glob) => {
                let is_absolute = self.rule.path.as_deref().is_some_and(|glob| glob.starts_with('/'));
                let path = if is_absolute { &place.absolute } else { &place.inside };
                path.as_ref().is_some_and(|path| glob.is_match(path))
            }
        })
    }

    /// Whether a host is one that it names.
    pub fn covers_host(&self, reached: &str) -> Option<bool> {
        let (named, reached) = (host(self.rule.host.as_deref()?), host(reached));
        Some(match named.strip_prefix("*.") {
            Some(parent) => reached.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            None => named == reached,
        })
    }
}

/// A glob in which `*` stays within a directory and `**` does not.
pub(super) fn glob(text: &str) -> Result<GlobMatcher, String> {
    let text = text.strip_prefix("./").unwrap_or(text);
    let glob = GlobBuilder::new(text).literal_separator(true).build().map_err(|why| why.kind().to_string())?;
    Ok(glob.compile_matcher())
}

/// A host as hosts are compared.
pub(super) fn host(text: &str) -> String {
    text.trim_end_matches('.').to_ascii_lowercase()
}

fn alternatives(words: &Words) -> &[String] {
    match words {
        Words::One(word) => std::slice::from_ref(word),
        Words::AnyOf(words) => words,
    }
}

/// Whether the command begins with these words, to the letter.
fn begins(beginning: &[Words], words: &[String]) -> bool {
    !beginning.is_empty()
        && beginning.len() <= words.len()
        && beginning.iter().zip(words).all(|(wanted, word)| alternatives(wanted).contains(word))
}

/// Whether the command may be taken to begin with these words: the program is the first; of the others, flags stand
/// anywhere and in any bundle, and what is not a flag stands in this order with nothing but flags, and perhaps a
/// value of each, between.
fn begins_loosely(beginning: &[Words], words: &[String]) -> bool {
    let ([program, wanted @ ..], [first, rest @ ..]) = (beginning, words) else { return false };
    let is_program = |name: &String| {
        name.eq_ignore_ascii_case(first)
            || (!name.contains('/') && name.to_ascii_lowercase() == programs::base_name(first))
    };
    if !alternatives(program).iter().any(is_program) {
        return false;
    }
    let positional: Vec<&Words> =
        wanted.iter().filter(|wanted| !alternatives(wanted).iter().any(|word| has_flag(rest, word))).collect();
    // How many of the positional words may have been found by now, for each way to read the flags before.
    let mut found = vec![false; positional.len() + 1];
    found[0] = true;
    let mut may_be_value = vec![false; positional.len() + 1];
    for word in rest {
        let mut next = vec![false; found.len()];
        let mut value = vec![false; found.len()];
        for at in 0..found.len() {
            if !found[at] {
                continue;
            }
            if let Some(wanted) = positional.get(at)
                && alternatives(wanted).iter().any(|wanted| wanted.eq_ignore_ascii_case(word))
            {
                next[at + 1] = true;
            }
            if word.starts_with('-') {
                (next[at], value[at]) = (true, true);
            } else if may_be_value[at] {
                next[at] = true;
            }
        }
        if found[positional.len()] {
            return true;
        }
        (found, may_be_value) = (next, value);
    }
    found[positional.len()]
}

/// Whether a flag that a rule names is among the words: `-rf` is in `-r -v -f`, `--force` in `--force=yes`.
fn has_flag(words: &[String], flag: &str) -> bool {
    let is_letters = |word: &str| word.len() > 1 && word.starts_with('-') && !word.starts_with("--");
    if flag.starts_with("--") && flag.len() > 2 {
        return words.iter().any(|word| {
            let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
            name.eq_ignore_ascii_case(flag)
        });
    }
    if !is_letters(flag) {
        return false;
    }
    let has = |letter: char| {
        words.iter().any(|word| is_letters(word) && word.contains(|known: char| known.eq_ignore_ascii_case(&letter)))
    };
    words.iter().any(|word| word.eq_ignore_ascii_case(flag)) || flag.chars().skip(1).all(has)
}

/// Where a path of a call leads, as far as its text says. Links are not followed: that is for whoever opens it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Relative to the workspace, where it stays inside.
    inside: Option<String>,
    /// From the root, where that is known and no `..` had to be undone to leave the workspace.
    absolute: Option<String>,
    /// All that it may be called, to be denied.
    known_as: Vec<String>,
}

impl Place {
    /// Of a path that is absolute, or relative to the workspace. `root` is where the workspace is, if that is known.
    pub fn new(path: &str, root: Option<&str>) -> Self {
        let root = root.map(|root| components(root, Vec::new())).filter(|root| !root.is_empty());
        if path.starts_with('/') {
            let parts = components(path, Vec::new());
            let absolute = format!("/{}", parts.join("/"));
            let inside = root.as_ref().and_then(|root| parts.strip_prefix(root.as_slice())).map(joined);
            let mut known_as = vec![absolute.clone()];
            known_as.extend(inside.clone());
            if root.is_none() {
                // It may be in the workspace, at any depth.
                known_as.extend((0..parts.len()).map(|at| parts[at..].join("/")));
            }
            return Self { inside, absolute: Some(absolute), known_as };
        }
        let parts = components(path, Vec::new());
        let below = joined(&parts);
        let full = root.as_ref().map(|root| components(path, root.clone()));
        let absolute = full.as_ref().map(|full| format!("/{}", full.join("/")));
        let mut known_as = vec![below.clone()];
        known_as.extend(absolute.clone());
        if parts.first().is_some_and(|part| *part == "..") {
            let climbed = parts.iter().take_while(|part| **part == "..").count();
            known_as.push(joined(&parts[climbed..]));
            match (full, root) {
                // Out of the workspace, and perhaps back into it.
                (Some(full), Some(root)) => known_as.extend(full.strip_prefix(root.as_slice()).map(joined)),
                _ => known_as.extend((climbed..parts.len()).map(|at| parts[at..].join("/"))),
            }
            return Self { inside: None, absolute: None, known_as };
        }
        Self { inside: Some(below), absolute, known_as }
    }
}

fn joined(parts: &[&str]) -> String {
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// The parts of a path behind `from`, with `.` and `..` taken out. From the root there is no way up.
fn components<'a>(path: &'a str, mut from: Vec<&'a str>) -> Vec<&'a str> {
    let is_rooted = path.starts_with('/') || !from.is_empty();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match from.last() {
                Some(&"..") => from.push(".."),
                Some(_) => {
                    from.pop();
                }
                None if is_rooted => {}
                None => from.push(".."),
            },
            part => from.push(part),
        }
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn beginning(line: &str) -> Vec<Words> {
        let word = |word: &str| match word.split('|').map(str::to_owned).collect::<Vec<_>>() {
            one if one.len() == 1 => Words::One(word.to_owned()),
            several => Words::AnyOf(several),
        };
        line.split(' ').map(word).collect()
    }

    #[test]
    fn an_allowance_reads_words_to_the_letter() {
        let allows = |rule: &str, line: &str| begins(&beginning(rule), &words(line));
        assert!(allows("git status|log", "git log --oneline"));
        for line in
            ["git", "git stash", "git -C x log", "/usr/bin/git log", "./git log", "Git log", "git LOG", "x git log"]
        {
            assert!(!allows("git status|log", line), "{line}");
        }
        assert!(!begins(&[], &words("ls")));
    }

    #[test]
    fn a_denial_reads_past_flags_their_values_and_case() {
        let denies = |rule: &str, line: &str| begins_loosely(&beginning(rule), &words(line));
        for line in [
            "git push",
            "git -c x=y push",
            "git --no-pager push origin",
            "git -C dir --git-dir x push",
            "GIT PUSH",
            "/usr/bin/git push",
            "./git push",
            "git --git-dir=x push",
            "git -- push",
        ] {
            assert!(denies("git push", line), "{line}");
        }
        for line in ["git", "git stash", "git commit push", "git log push", "gitpush", "echo git push", "git push-x"] {
            assert!(!denies("git push", line), "{line}");
        }
        for line in ["rm -rf /", "rm -r -f /", "rm -fr /", "rm -v -Rf /", "rm / -rf", "rm --x -rf -- /"] {
            assert!(denies("rm -rf /", line), "{line}");
        }
        for line in ["rm -r /", "rm -rf /tmp", "rm -f /", "rm / --force"] {
            assert!(!denies("rm -rf /", line), "{line}");
        }
        assert!(denies("rm --force|-f", "rm x -f") && denies("rm --force|-f", "rm --force=1"));
        assert!(denies("mkfs|mkfs.ext4", "/sbin/mkfs.ext4 x") && denies("/sbin/mkfs", "/sbin/mkfs x"));
        assert!(!denies("/sbin/mkfs", "mkfs x"));
    }

    #[test]
    fn a_path_is_normalised_and_never_climbs_out() {
        let inside = |path: &str, root: Option<&str>| Place::new(path, root).inside;
        for (path, expected) in [
            ("src/a.rs", Some("src/a.rs")),
            ("./src//a.rs", Some("src/a.rs")),
            ("src/x/../a.rs", Some("src/a.rs")),
            ("src/../../w/src/a.rs", None),
            ("../w/src", None),
            ("..", None),
            ("", Some(".")),
            ("/etc/passwd", None),
            ("/w/src/a.rs", Some("src/a.rs")),
            ("/w/src/../../etc", None),
            ("/w", Some(".")),
            ("/wider/src", None),
        ] {
            assert_eq!(inside(path, Some("/w")).as_deref(), expected, "{path}");
        }
        assert_eq!(inside("/w/src", None), None);
        assert_eq!(Place::new("../../../../etc/x", Some("/w/y")).known_as, ["../../../../etc/x", "/etc/x", "etc/x"]);
        assert_eq!(Place::new("/../etc", None).absolute.as_deref(), Some("/etc"));
    }

    fn rule(action: Action, path: Option<&str>, host: Option<&str>) -> Rule {
        Rule {
            name: None,
            tool: None,
            command: None,
            path: path.map(str::to_owned),
            host: host.map(str::to_owned),
            action,
            reason: None,
            matches: Vec::new(),
            not_match: Vec::new(),
        }
    }

    #[test]
    fn a_glob_allows_what_is_inside_and_denies_by_any_name() {
        let covers = |action, glob: &str, path: &str, root: Option<&str>| {
            let rule = rule(action, Some(glob), None);
            Held::new(Layer::Tenant, 0, &rule).covers_path(&Place::new(path, root)).unwrap()
        };
        let allows = |glob: &str, path: &str| covers(Action::Allow, glob, path, Some("/w"));
        assert!(
            allows("src/**", "src/a/b.rs") && allows("src/*.rs", "./src/x/../a.rs") && allows("./src/**", "/w/src/a")
        );
        assert!(allows("/w/**", "src/a") && allows("/etc/*", "/etc/hosts") && allows("**", "a"));
        for (glob, path) in [
            ("src/*", "src/a/b"),
            ("src/**", "src/../Cargo.toml"),
            ("**", "../x"),
            ("**/*.md", "/etc/x.md"),
            ("/etc/*", "../etc/hosts"),
            ("src/**", "SRC/a"),
            ("[", "["),
        ] {
            assert!(!allows(glob, path), "{glob} {path}");
        }
        let denies = |glob: &str, path: &str, root| covers(Action::Deny, glob, path, root);
        for (path, root) in [
            (".env", None),
            ("./x/../.env", None),
            ("/w/.env", Some("/w")),
            ("/w/.env", None),
            ("../w/.env", Some("/w")),
        ] {
            assert!(denies(".env", path, root), "{path}");
        }
        assert!(denies("secrets/**", "secrets", None) && denies("secrets/**", "secrets/a/b", None));
        assert!(denies("**/.env", "../../.env", None) && denies("/etc/**", "../etc/x", Some("/w")));
        assert!(denies("[", "anything", None), "a glob that is none denies everything");
        assert!(!denies(".env", ".envrc", None) && !denies(".env", "/other/.env", Some("/w")));
    }

    #[test]
    fn a_host_is_itself_or_below_a_star() {
        let covers = |named: &str, reached: &str| {
            let rule = rule(Action::Allow, None, Some(named));
            Held::new(Layer::Tenant, 0, &rule).covers_host(reached).unwrap()
        };
        assert!(covers("example.com", "EXAMPLE.com.") && covers("*.example.com", "a.b.example.com"));
        for (named, reached) in [
            ("example.com", "a.example.com"),
            ("*.example.com", "example.com"),
            ("*.example.com", "badexample.com"),
            ("*.example.com", ".example.com"),
            ("example.com", "example.com.evil.org"),
            ("*.com", "com"),
        ] {
            assert!(!covers(named, reached), "{named} {reached}");
        }
    }
}
