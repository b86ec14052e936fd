//! The policy as this program reads it: the text of commands, the file of the installation, and what is built in. What
//! is decided by it is a matter of [`raddle_domain::policy`].
//!
//! What is built in denies two things that nobody means, and allows nothing. Not even what only reads: `cat` reads
//! every file that the sandbox shows, the keys of whoever runs the server among them; `git status` and its like run
//! programs that a repository's own configuration names. Which of it is harmless depends on the machine and its
//! sandbox, so it is the installation's to say.

pub mod file;
pub mod shell;
mod suspects;

use std::sync::LazyLock;

use raddle_domain::policy::{
    Policy,
    check::{self, BadRule},
};

/// The layer of this build. A test reads it with its examples.
pub fn built_in() -> &'static Policy {
    static BUILT_IN: LazyLock<Policy> =
        LazyLock::new(|| file::parse(include_str!("policy/built_in.toml")).unwrap_or_default());
    &BUILT_IN
}

/// Checks a layer, with its examples.
pub fn check(policy: &Policy) -> Result<(), BadRule> {
    check::check(policy, &shell::read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_can_be_read_and_keeps_to_its_examples() {
        assert_eq!(file::parse(include_str!("policy/built_in.toml")).as_ref(), Ok(built_in()));
        assert_eq!(built_in().rules.len(), 2);
    }
}
