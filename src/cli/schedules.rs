//! `raddle schedules`: make, list, show, hold back, delete.

use clap::{Args, Subcommand, ValueEnum};
use raddle_domain::schedule::Schedule;
use serde_json::{Map, Value, json};

use super::{Failure, Remote, collect, jobs::NewWork, plain, say, say_json, word};

/// What to do with schedules.
#[derive(Debug, Args)]
pub struct Schedules {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of them in a process")]
enum Verb {
    /// Make a schedule, which makes jobs of this name
    Create {
        #[command(flatten)]
        work: NewWork,
        /// Minute, hour, day of month, month, day of week
        #[arg(long, value_name = "EXPRESSION", required_unless_present = "at", conflicts_with = "at")]
        cron: Option<String>,
        /// Once, such as 2027-01-31T09:00:00Z
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
        /// In which the expression is read, such as Europe/Berlin
        #[arg(long, value_name = "ZONE")]
        timezone: Option<String>,
        /// What becomes of a time that comes while the last job has not ended
        #[arg(long, value_enum)]
        overlap: Option<Overlap>,
        /// Which times are made up for that came while there was no server
        #[arg(long, value_enum)]
        catch_up: Option<CatchUp>,
        #[command(flatten)]
        remote: Remote,
    },
    /// List schedules, oldest first
    #[command(alias = "ls")]
    List {
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a schedule
    Show(One),
    /// Make no jobs for now
    Pause(One),
    /// Make jobs again
    Resume(One),
    /// Remove a schedule; the jobs that it made stay
    Delete(One),
}

#[derive(Debug, Args)]
struct One {
    schedule: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Overlap {
    /// It is left out
    Skip,
    /// It waits
    Queue,
    /// The last job is cancelled
    CancelRunning,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CatchUp {
    None,
    /// The newest
    One,
    /// The newest hundred
    All,
}

impl Overlap {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Queue => "queue",
            Self::CancelRunning => "cancel_running",
        }
    }
}

impl CatchUp {
    const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::One => "one",
            Self::All => "all",
        }
    }
}

impl Schedules {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Create { work, cron, at, timezone, overlap, catch_up, remote } => {
                let job = work.into_body()?;
                let mut body = Map::from_iter([("name".to_owned(), job["name"].clone())]);
                body.insert("job".to_owned(), Value::Object(job));
                let overlap = overlap.map(|overlap| overlap.as_str().to_owned());
                let catch_up = catch_up.map(|catch_up| catch_up.as_str().to_owned());
                let fields =
                    [("cron", cron), ("at", at), ("timezone", timezone), ("overlap", overlap), ("catch_up", catch_up)];
                let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
                body.extend(given);
                let schedule = remote.client()?.create_schedule(&body).await?;
                if remote.json { say_json(&schedule) } else { say(&schedule.id.to_string()) }
            }
            Verb::List { limit, remote } => {
                let client = remote.client()?;
                let found = collect(limit as usize, Vec::new(), async |query| client.schedules(&query).await).await?;
                if remote.json { say_json(&found) } else { found.iter().try_for_each(|found| say(&line(found))) }
            }
            Verb::Show(One { schedule, remote }) => {
                let schedule = remote.client()?.schedule(&schedule).await?;
                if remote.json { say_json(&schedule) } else { show(&schedule) }
            }
            Verb::Pause(one) => patch(one, "paused").await,
            Verb::Resume(one) => patch(one, "active").await,
            Verb::Delete(One { schedule, remote }) => Ok(remote.client()?.delete_schedule(&schedule).await?),
        }
    }
}

async fn patch(One { schedule, remote }: One, status: &str) -> Result<(), Failure> {
    let schedule = remote.client()?.patch_schedule(&schedule, &json!({ "status": status })).await?;
    if remote.json { say_json(&schedule) } else { say(&format!("{}  {}", schedule.id, word(&schedule.status))) }
}

fn line(schedule: &Schedule) -> String {
    let when = schedule.cron.clone().or(schedule.at.map(|at| at.to_string())).unwrap_or_default();
    let next = schedule.next_at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let name = plain(schedule.name.as_deref().unwrap_or(&schedule.job.name)).replace('\n', " ");
    let status = word(&schedule.status);
    format!("{}  {status:<9}  {next}  {} {}  {name}", schedule.id, plain(&when), schedule.timezone)
}

fn show(schedule: &Schedule) -> Result<(), Failure> {
    say(&line(schedule))?;
    say(&format!("overlap {}, catch up {}", word(&schedule.overlap), word(&schedule.catch_up)))?;
    say(&format!("made {} jobs, left {} out", schedule.fired, schedule.skipped))?;
    match schedule.last_job {
        Some(job) => say(&format!("last job {job}")),
        None => Ok(()),
    }
}
