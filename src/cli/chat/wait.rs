//! What a turn waits for a person to say, and how a line says it.

use std::{
    collections::VecDeque,
    io::{IsTerminal, Write},
};

use raddle_domain::record::{Approval, Decision, Effect, Permit, Question, Resolution};

use super::show::{changes, painted};
use crate::{
    cli::{Failure, approvals, plain},
    client::{Client, ClientError},
};

/// What a turn waits for a person to say.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wait {
    Approval(Box<Approval>),
    Question(Box<Question>),
    /// One of which nobody knows whether it happened.
    Effect(Box<Effect>),
}

impl Wait {
    pub fn id(&self) -> String {
        match self {
            Self::Approval(approval) => approval.id.to_string(),
            Self::Question(question) => question.id.to_string(),
            Self::Effect(effect) => effect.operation_id.to_string(),
        }
    }

    /// The command that lists such.
    pub const fn listed(&self) -> &'static str {
        match self {
            Self::Approval(_) => "approvals",
            Self::Question(_) => "questions",
            Self::Effect(_) => "effects",
        }
    }

    /// Tells the person what is asked, and what may be said.
    pub fn show(&self) {
        match self {
            Self::Approval(approval) => asks(approval),
            Self::Question(question) => {
                eprintln!("[{}]", plain(&question.question));
                question.options.iter().for_each(|option| eprintln!("- {}", plain(option)));
            }
            Self::Effect(effect) => {
                let why = effect.reason.as_deref().unwrap_or_default();
                eprintln!("[nobody knows whether {} happened: {}]", plain(&effect.tool), plain(why));
                eprintln!("[retry: start it again; settle TEXT: it happened, and said TEXT; abort: end the turn]");
            }
        }
        self.prompt();
    }

    /// Shows what may be said.
    pub fn prompt(&self) {
        match self {
            Self::Approval(approval) => eprint!("{} ", choices(approval)),
            Self::Question(_) => eprint!("answer> "),
            Self::Effect(_) => eprint!("[retry/settle/abort] "),
        }
        // What cannot be shown cannot be helped either.
        let _ = std::io::stderr().flush();
    }

    /// Passes on what a line says; `None` when it says nothing clear.
    pub async fn says(&self, client: &Client, line: &str) -> Option<Result<(), ClientError>> {
        Some(match self {
            Self::Approval(approval) => {
                let (decision, reason) = decision(line, &approval.available_decisions)?;
                client.decide(&approval.id.to_string(), decision, reason.as_deref()).await.map(drop)
            }
            Self::Question(question) => {
                let answer = Some(line).filter(|line| !line.trim().is_empty())?;
                client.answer(&question.id.to_string(), answer).await.map(drop)
            }
            Self::Effect(effect) => {
                let (resolution, output) = resolution(line)?;
                client.resolve(&effect.operation_id.to_string(), resolution, output).await.map(drop)
            }
        })
    }
}

/// Everything that somebody who decides should have seen.
fn asks(approval: &Approval) {
    eprintln!("[may this be done? {}]", approvals::call(approval));
    for line in changes(&approval.arguments).unwrap_or_default() {
        eprintln!("{}", painted(&plain(&line), std::io::stderr().is_terminal()));
    }
    if let Some(cwd) = &approval.cwd {
        eprintln!("[in {}]", plain(cwd));
    }
    eprintln!("[{}]", plain(&approval.reason));
    if let Some(rule) = &approval.matched_rule {
        eprintln!("[because of the rule {}]", plain(rule));
    }
    if let Some(permit) = &approval.amendment {
        eprintln!("[`session` and `always` would let pass: {}]", plain(&covers(permit)));
    }
}

/// What a lasting approval lets pass from then on.
fn covers(permit: &Permit) -> String {
    match &permit.command_prefix {
        Some(words) => format!("{} of commands that begin with `{}`", permit.tool, words.join(" ")),
        None => format!("{} with exactly these arguments", permit.tool),
    }
}

/// The words that decide, as far as the approval allows them.
const WORDS: [(&str, Decision); 5] = [
    ("y", Decision::Approved),
    ("n", Decision::Denied),
    ("session", Decision::ApprovedForSession),
    ("always", Decision::ApprovedAlways),
    ("abort", Decision::Abort),
];

fn choices(approval: &Approval) -> String {
    let allowed = WORDS.iter().filter(|(_, decision)| approval.available_decisions.contains(decision));
    format!("[{}]", allowed.map(|(word, _)| *word).collect::<Vec<_>>().join("/"))
}

/// What a line decides, and why; `None` when it is no clear word. A refusal may give a reason, `n not there`; nothing
/// but the bare word lets a call pass.
fn decision(line: &str, allowed: &[Decision]) -> Option<(Decision, Option<String>)> {
    let line = line.trim();
    let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let first = match first.to_lowercase().as_str() {
        "yes" => "y".to_owned(),
        "no" => "n".to_owned(),
        other => other.to_owned(),
    };
    let (_, decision) = WORDS.into_iter().find(|(word, _)| *word == first)?;
    let reason = Some(rest.trim().to_owned()).filter(|rest| !rest.is_empty());
    let refuses = matches!(decision, Decision::Denied | Decision::Abort);
    (allowed.contains(&decision) && (refuses || reason.is_none())).then_some((decision, reason))
}

/// What a line says about an uncertain effect, and the output that goes with it.
fn resolution(line: &str) -> Option<(Resolution, Option<&str>)> {
    let line = line.trim();
    let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match (first.to_lowercase().as_str(), rest.trim()) {
        ("retry", "") => Some((Resolution::Retry, None)),
        ("abort", "") => Some((Resolution::Abort, None)),
        ("settle", output) => Some((Resolution::Settle, Some(output))),
        _ => None,
    }
}

/// What a turn that was open before we came waits for.
pub(super) async fn open(client: &Client, thread: &str, turn: &str) -> Result<VecDeque<Wait>, Failure> {
    let query = [("thread", thread.to_owned()), ("status", "pending".to_owned()), ("limit", "500".to_owned())];
    let uncertain = [("thread", thread.to_owned()), ("status", "uncertain".to_owned()), ("limit", "500".to_owned())];
    let effects = client.effects(&uncertain).await?.data.into_iter();
    let effects = effects.filter(|effect| effect.turn_id.to_string() == turn && !effect.closed);
    let approvals = client.approvals(&query).await?.data.into_iter().filter(|asked| asked.turn_id.to_string() == turn);
    let questions = client.questions(&query).await?.data.into_iter().filter(|asked| asked.turn_id.to_string() == turn);
    let approvals = approvals.map(|approval| Wait::Approval(Box::new(approval)));
    let effects = effects.map(|effect| Wait::Effect(Box::new(effect)));
    Ok(approvals.chain(questions.map(|question| Wait::Question(Box::new(question)))).chain(effects).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_word_lets_a_call_pass() {
        let all = WORDS.map(|(_, decision)| decision);
        let said = |line: &str| decision(line, &all);
        for yes in ["y", " Y ", "yes", "YES"] {
            assert_eq!(said(yes), Some((Decision::Approved, None)), "{yes}");
        }
        assert_eq!(said("always"), Some((Decision::ApprovedAlways, None)));
        assert_eq!(said("session"), Some((Decision::ApprovedForSession, None)));
        assert_eq!(said("n"), Some((Decision::Denied, None)));
        assert_eq!(said("no  not there "), Some((Decision::Denied, Some("not there".into()))));
        assert_eq!(said("abort"), Some((Decision::Abort, None)));
        for unclear in ["", "yeah", "y but wait", "always not", "yn", "why?"] {
            assert_eq!(said(unclear), None, "{unclear}");
        }
    }

    #[test]
    fn an_uncertain_effect_is_settled_by_clear_words_only() {
        assert_eq!(resolution(" Retry "), Some((Resolution::Retry, None)));
        assert_eq!(resolution("settle  it printed 3 "), Some((Resolution::Settle, Some("it printed 3"))));
        assert_eq!(resolution("settle"), Some((Resolution::Settle, Some(""))));
        assert_eq!(resolution("abort"), Some((Resolution::Abort, None)));
        for unclear in ["", "y", "retry please", "abort it", "settled"] {
            assert_eq!(resolution(unclear), None, "{unclear}");
        }
    }

    #[test]
    fn what_the_approval_does_not_allow_is_no_decision() {
        assert_eq!(decision("always", &[Decision::Approved, Decision::Denied]), None);
        assert_eq!(decision("y", &[]), None);
    }
}
