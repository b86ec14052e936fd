//! A command line, as far as it can be read without running it.

use std::fmt;

/// What is known of a command line before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The simple commands it is made of, each of plain words and at least one, where it is made of nothing else. They
    /// are joined by `&&`, `||`, `;` or `|`: any of them may run.
    pub commands: Result<Vec<Vec<String>>, Opaque>,
    /// Every command that it may come to run, as far as that can be guessed, wrappers taken off: what rules that deny
    /// or ask are held against. Some may be wrong; none may be missing because of a way to write it that is known.
    pub suspects: Vec<Vec<String>>,
    /// Why there may be more of them.
    pub unread: Option<&'static str>,
}

impl Script {
    /// Its words, where it is a single command that does what the words say, and nothing else.
    pub fn trusted_words(&self) -> Option<&[String]> {
        match self.commands.as_deref() {
            Ok([words]) if super::programs::distrusted(words).is_none() => Some(words),
            _ => None,
        }
    }
}

/// Why only a shell can say what a text does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opaque {
    Empty,
    TooLong,
    TooMany,
    Nul,
    CarriageReturn,
    Control,
    Lines,
    Syntax,
    Substitution,
    Expansion,
    Escape,
    Redirection,
    HereDocument,
    Assignment,
    Subshell,
    Background,
    /// File names become words that nobody has read: a file may be called `--checkpoint-action=exec=sh`.
    Glob,
    Comment,
    Compound,
    Other,
}

impl Opaque {
    /// Whether it is beyond a bound of ours, and not merely of a kind that we do not judge.
    pub const fn is_bound(self) -> bool {
        matches!(self, Self::TooLong | Self::TooMany)
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::TooLong => "it is too long to be judged",
            Self::TooMany => "it has too many commands to be judged",
            Self::Nul => "it has a NUL character",
            Self::CarriageReturn => "it has a carriage return",
            Self::Control => "it has a control character",
            Self::Lines => "it has more than one line",
            Self::Syntax => "it cannot be parsed",
            Self::Substitution => "it runs a command to write another (a substitution)",
            Self::Expansion => "its words depend on what they expand to",
            Self::Escape => "it has a backslash outside of single quotes",
            Self::Redirection => "it has a redirection",
            Self::HereDocument => "it has a here-document",
            Self::Assignment => "it sets a variable, which may change what a program does",
            Self::Subshell => "it has a subshell or a group",
            Self::Background => "it starts something in the background",
            Self::Glob => "its words depend on the names of files (a glob)",
            Self::Comment => "it has a comment",
            Self::Compound => "it has a loop, a condition, a test or a function",
            Self::Other => "it is more than plain words",
        })
    }
}
