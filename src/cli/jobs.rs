//! `raddle jobs`: make, list, show, hold back, end, repeat, watch.

use std::time::Duration;

use clap::{Args, Subcommand};
use raddle_domain::job::{Job, JobStatus};
use serde_json::{Map, Value, json};

use super::{Failure, Remote, collect, plain, say, say_json, word};

/// How often a job that is watched is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What to do with jobs.
#[derive(Debug, Args)]
pub struct Jobs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a job
    Create {
        #[command(flatten)]
        work: NewWork,
        /// Not before then, such as 2027-01-31T09:00:00Z
        #[arg(long, value_name = "TIME")]
        run_at: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// List jobs, oldest first
    #[command(alias = "ls")]
    List {
        /// Only those with this status
        #[arg(long)]
        status: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a job and its history
    Show(One),
    /// Hold a job back
    Pause(One),
    /// Let a job that was held back go on
    Resume(One),
    /// End a job
    Cancel(One),
    /// Have a job done again, or at once if it waits for its retry
    Retry(One),
    /// Show what becomes of a job until it ends; fails unless it is completed
    Watch(One),
}

#[derive(Debug, Args)]
struct One {
    job: String,
    #[command(flatten)]
    remote: Remote,
}

/// What is to be done, as the command line says it.
#[derive(Debug, Args)]
pub struct NewWork {
    /// What people call it
    name: String,
    /// Start a turn with this prompt, on `--thread`
    #[arg(long, value_name = "TEXT", requires = "thread", conflicts_with_all = ["command", "url"])]
    prompt: Option<String>,
    /// Run this command in the workspace of `--thread`
    #[arg(long, value_name = "TEXT", requires = "thread", conflicts_with = "url")]
    command: Option<String>,
    /// The thread
    #[arg(long, value_name = "ID", conflicts_with = "url")]
    thread: Option<String>,
    /// POST to this address
    #[arg(long, value_name = "URL", required_unless_present_any = ["prompt", "command"])]
    url: Option<String>,
    /// With `--url`: what to send, as JSON
    #[arg(long, value_name = "JSON", requires = "url")]
    body: Option<String>,
    /// With `--url`: the name of the server's secret to sign with
    #[arg(long, value_name = "NAME", requires = "url")]
    secret: Option<String>,
    /// Retries after a failure
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// The pause before the first retry, in milliseconds
    #[arg(long, value_name = "MS")]
    backoff_base_ms: Option<u64>,
}

impl NewWork {
    /// As a request has it.
    pub fn into_body(self) -> Result<Map<String, Value>, Failure> {
        let (kind, payload) = match (self.prompt, self.command, self.url) {
            (Some(prompt), ..) => ("turn", json!({ "thread_id": self.thread, "prompt": prompt })),
            (_, Some(command), _) => ("command", json!({ "thread_id": self.thread, "command": command })),
            (.., url) => {
                let body = self.body.as_deref().map(serde_json::from_str::<Value>).transpose();
                let body = body.map_err(|why| Failure::Usage(format!("`--body` is not JSON: {why}")))?;
                let mut payload = json!({ "url": url, "body": body });
                if let Some(secret) = self.secret {
                    payload["secret"] = secret.into();
                }
                ("webhook", payload)
            }
        };
        let mut whole = Map::from_iter([
            ("name".to_owned(), self.name.into()),
            ("kind".to_owned(), kind.into()),
            ("payload".to_owned(), payload),
        ]);
        whole.extend(self.max_attempts.map(|most| ("max_attempts".to_owned(), most.into())));
        whole.extend(self.backoff_base_ms.map(|base| ("backoff_base_ms".to_owned(), base.into())));
        Ok(whole)
    }
}

impl Jobs {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Create { work, run_at, remote } => {
                let mut body = work.into_body()?;
                body.extend(run_at.map(|at| ("run_at".to_owned(), at.into())));
                let job = remote.client()?.create_job(&body).await?;
                if remote.json { say_json(&job) } else { say(&job.id.to_string()) }
            }
            Verb::List { status, limit, remote } => {
                let client = remote.client()?;
                let filter = status.map(|status| ("status", status)).into_iter().collect();
                let jobs = collect(limit as usize, filter, async |query| client.jobs(&query).await).await?;
                if remote.json { say_json(&jobs) } else { jobs.iter().try_for_each(|job| say(&line(job))) }
            }
            Verb::Show(One { job, remote }) => {
                let job = remote.client()?.job(&job).await?;
                if remote.json { say_json(&job) } else { show(&job) }
            }
            Verb::Pause(one) => verb(one, "pause").await,
            Verb::Resume(one) => verb(one, "resume").await,
            Verb::Cancel(one) => verb(one, "cancel").await,
            Verb::Retry(one) => verb(one, "retry").await,
            Verb::Watch(one) => watch(one).await,
        }
    }
}

async fn verb(One { job, remote }: One, verb: &str) -> Result<(), Failure> {
    let job = remote.client()?.job_verb(&job, verb).await?;
    if remote.json { say_json(&job) } else { say(&format!("{}  {}", job.id, word(&job.status))) }
}

fn line(job: &Job) -> String {
    let (id, status, at) = (job.id, word(&job.status), job.created_at);
    let when = job.next_retry_at.or(job.run_at).map(|at| format!(" at {at}")).unwrap_or_default();
    let when = if job.status == JobStatus::Queued { when } else { String::new() };
    format!("{id}  {status:<9}  {at}  {} {}{when}", job.work.kind(), plain(&job.name).replace('\n', " "))
}

fn show(job: &Job) -> Result<(), Failure> {
    say(&line(job))?;
    say(&format!("attempt {} of {}, {} %", job.attempt, job.max_attempts, job.progress))?;
    if let Some(detail) = &job.detail {
        say(&format!("detail {}", plain(detail)))?;
    }
    if let Some(output) = &job.output {
        say(&format!("output {}", plain(&output.to_string())))?;
    }
    job.history.iter().try_for_each(|phase| {
        let detail = phase.detail.as_deref().map(|detail| format!(": {}", plain(detail))).unwrap_or_default();
        say(&format!("  {}  {}{detail}", phase.at, phase.phase))
    })
}

/// Shows each change once.
async fn watch(One { job, remote }: One) -> Result<(), Failure> {
    let client = remote.client()?;
    let mut seen = None;
    loop {
        let job = client.job(&job).await?;
        let state = (job.status, job.progress, job.attempt, job.detail.clone());
        if seen.as_ref() != Some(&state) {
            if remote.json {
                say_json(&job)?
            } else {
                say(&line(&job))?
            }
            seen = Some(state);
        }
        match job.status {
            JobStatus::Completed => return Ok(()),
            JobStatus::Failed | JobStatus::Cancelled | JobStatus::Uncertain => return Err(Failure::Told),
            JobStatus::Queued | JobStatus::Running | JobStatus::Paused => tokio::time::sleep(LOOK).await,
        }
    }
}
