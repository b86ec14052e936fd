//! `raddle questions`: what agents ask, and the answers.

use clap::{Args, Subcommand};
use raddle_domain::record::{Question, summarize};

use super::{Failure, Remote, Which, collect, plain, say, say_json, word};

/// What to do with questions.
#[derive(Debug, Args)]
pub struct Questions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List questions, oldest first; those that are pending unless told otherwise
    Ls {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a question
    Show {
        question: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Answer a question
    Answer {
        question: String,
        answer: String,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Questions {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Ls { which, remote } => {
                let client = remote.client()?;
                let (limit, filter) = which.asks_for("pending");
                let questions = collect(limit, filter, async |query| client.questions(&query).await).await?;
                if remote.json {
                    return say_json(&questions);
                }
                questions.iter().try_for_each(|question| {
                    let (status, at) = (word(&question.status), question.asked_at);
                    let asked = summarize(&plain(&question.question));
                    say(&format!("{}  {status:<9}  {at}  {asked}", question.id))
                })
            }
            Verb::Show { question, remote } => {
                let question = remote.client()?.question(&question).await?;
                if remote.json { say_json(&question) } else { show(&question) }
            }
            Verb::Answer { question, answer, remote } => {
                let answered = remote.client()?.answer(&question, &answer).await?;
                if remote.json {
                    say_json(&answered)
                } else {
                    say(&format!("{}  {}", answered.id, word(&answered.status)))
                }
            }
        }
    }
}

fn show(question: &Question) -> Result<(), Failure> {
    say(&format!("{}  {}", question.id, word(&question.status)))?;
    say(&format!("thread {}, turn {}", question.thread_id, question.turn_id))?;
    say(&plain(&question.question))?;
    question.options.iter().try_for_each(|option| say(&format!("- {}", plain(option))))?;
    say(&format!("asked {}, expires {}", question.asked_at, question.expires_at))?;
    question.answer.iter().try_for_each(|answer| say(&format!("answer: {}", plain(answer))))
}
