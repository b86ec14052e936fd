//! `raddle effects`: effects of which nobody knows whether they happened, and what becomes of them.

use clap::{Args, Subcommand, ValueEnum};
use raddle_domain::record::{Resolution, summarize};

use super::{Failure, Remote, Which, collect, plain, say, say_json, word};

/// What to do with uncertain effects.
#[derive(Debug, Args)]
pub struct Effects {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List effects, oldest first; those that are uncertain unless told otherwise
    Ls {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        remote: Remote,
    },
    /// Say what is to become of an uncertain effect
    Resolve {
        operation: String,
        how: How,
        /// With `settle`: what the tool would have said
        #[arg(long, required_if_eq("how", "settle"))]
        output: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// Start it again: it did not happen, or doing it twice does no harm
    Retry,
    /// It happened, with this output
    Settle,
    /// End the turn
    Abort,
}

impl Effects {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Ls { which, remote } => {
                let client = remote.client()?;
                let (limit, filter) = which.asks_for("uncertain");
                let effects = collect(limit, filter, async |query| client.effects(&query).await).await?;
                if remote.json {
                    return say_json(&effects);
                }
                effects.iter().try_for_each(|effect| {
                    let (id, status, at) = (effect.operation_id, word(&effect.status), effect.intended_at);
                    let why = effect.reason.as_deref().unwrap_or_default();
                    let what = summarize(&plain(&format!("{} {why}", effect.tool)));
                    say(&format!("{id}  {status:<9}  {at}  {} {what}", effect.thread_id))
                })
            }
            Verb::Resolve { operation, how, output, remote } => {
                let resolution = match how {
                    How::Retry => Resolution::Retry,
                    How::Settle => Resolution::Settle,
                    How::Abort => Resolution::Abort,
                };
                if resolution != Resolution::Settle && output.is_some() {
                    return Err(Failure::Usage("`--output` goes with `settle` only".to_owned()));
                }
                let resolved = remote.client()?.resolve(&operation, resolution, output.as_deref()).await?;
                if remote.json {
                    say_json(&resolved)
                } else {
                    say(&format!("{}  {}", resolved.operation_id, word(&resolved.status)))
                }
            }
        }
    }
}
